"""A run from outside: check everything, make or open its directory, join Ray, hand over to the
driver, return what came of it.
"""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from cqlray.api.checks import environment_of, require_place, without_tests
from cqlray.config.load import dump_yaml
from cqlray.config.members import members, without_repeats
from cqlray.config.schema import RunConfig
from cqlray.config.secrets import masked_words
from cqlray.data.dataset import SHARDS, absolute_name, is_native
from cqlray.envs.layout import observation_layout, observation_names
from cqlray.envs.make import EnvSpec
from cqlray.errors import ActorLost, Interrupted, StorageFailure, UserError
from cqlray.results import policy_actions, video
from cqlray.results.policies import newest_rows
from cqlray.results.record import fqe_returns, load_run
from cqlray.results.report import verdict_words
from cqlray.results.statistics.summary import RunRecord, references_of_data, summarize
from cqlray.runtime.jobs import inside_job, require_lasting
from cqlray.runtime.placement import ClusterResources, Plan, make_plan
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import AnyPath, any_path
from cqlray.storage.run_directory import (
    CONFIG,
    DATASET,
    FITTED_Q,
    FORMAT,
    VIDEO,
    RunDirectory,
    write_bytes,
)
from cqlray.storage.trust import SIGNATURE, names_module, signature, trusted_config

if TYPE_CHECKING:
    from cqlray.stages.run import Run

T = TypeVar("T")
PACKAGES = ("cqlray", "ray", "torch", "gymnasium", "numpy", "pyarrow")


def start(config: RunConfig, progress: ProgressDisplay, dataset_only: bool = False) -> RunDirectory:
    """Make a new run from a config that config/load has checked: all stages, or the dataset alone.

    Raises:
        UserError: a mistake in the environment, the dataset or the demands; nothing was written
            then.
        Interrupted: asked to stop; the directory can be resumed.
    """
    config, repeats = without_repeats(without_tests(config))
    if inside_job():
        require_lasting("--out", config.out)
    path = any_path(config.out or default_name(config))
    RunDirectory.require_blank(path)
    require_place(path)
    spec = environment_of(config, progress)
    for line in repeats:
        progress.say(line)

    def create(plan: Plan) -> None:
        manifest = _manifest(config, spec, plan, dataset_only, progress)
        directory = RunDirectory.create(path, manifest)
        resolved = dataclasses.replace(
            config, out=str(path), dataset=config.dataset and absolute_name(config.dataset)
        )
        # Last, because it is what makes the directory a run that can be resumed.
        write_bytes(directory / CONFIG, dump_yaml(resolved).encode())

    directory, plan_on = RunDirectory(path), partial(make_plan, config, members(config))
    _drive(config, spec, progress, directory, plan_on, dataset_only, create)
    return _with_video(directory, config, progress)


def _manifest(
    config: RunConfig, spec: EnvSpec, plan: Plan, dataset_only: bool, progress: ProgressDisplay
) -> dict[str, Any]:
    """The manifest of a run that is about to begin."""
    packages = {name: version(name) for name in PACKAGES}
    run_id = uuid.uuid4().hex
    signed = signature(run_id, config.env)
    if signed is None and names_module(config.env.id, config.env.kwargs):
        progress.say(
            "warning: no key can be kept in your home, so resume, evaluate and video of this run"
            f" will need --env {config.env.id}"
        )
    played = config.dataset is None or config.evaluation.episodes
    return {
        "format": FORMAT,
        "id": run_id,
        "command": shlex.join(["cqlray", *masked_words(sys.argv[1:])]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **packages},
        "environment": dataclasses.asdict(spec),
        SIGNATURE: signed,
        # For policies and export, which make no environment.
        "observation_layout": observation_layout(config.env) if played else None,
        "observation_names": observation_names(config.env) if played else None,
        "plan": dataclasses.asdict(plan),
        "dataset_only": dataset_only,
        "finished": False,
    }


def resume(path: AnyPath, progress: ProgressDisplay, trust: bool | str = False) -> RunDirectory:
    """Go on with a run exactly where it stopped; `trust` as in trusted_config.

    Raises as `start`, and as trusted_config.
    """
    directory = RunDirectory.open(path)
    config = trusted_config(directory, trust)
    manifest = directory.manifest()
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} is of format {manifest.get('format')}; this cqlray reads format {FORMAT}"
        )
    converted = any((path / DATASET).glob(SHARDS)) and is_native(str(path))
    if config.dataset is not None and converted:  # the run had converted foreign data already
        config = dataclasses.replace(config, dataset=str(path / DATASET))

    def plan_on(cluster: ClusterResources) -> Plan:
        # Populations stay as they were, whatever the machine is now: results depend on them to the
        # bit.
        plan = make_plan(config, members(config), cluster)
        populations = tuple(tuple(population) for population in manifest["plan"]["populations"])
        return dataclasses.replace(
            plan, populations=populations, learners=min(plan.learners, len(populations))
        )

    _drive(config, environment_of(config), progress, directory, plan_on, manifest["dataset_only"])
    return _with_video(directory, config, progress)


def fit_q(
    path: AnyPath, progress: ProgressDisplay, trust: bool | str = False
) -> list[dict[str, Any]]:
    """Judge the snapshots of a run by fitted Q evaluation where that was not done; returns the
    newest row of each member. `trust` as in trusted_config.

    Raises:
        UserError: it is no run, is under way, or has no dataset or snapshots yet; or no member's
            newest snapshot has a finite estimate. And as trusted_config.
        Interrupted: asked to stop.
    """
    from cqlray.driver import fitted_q

    directory = RunDirectory.open(path)
    config = trusted_config(directory, trust)
    directory.require_snapshots(len(directory.manifest()["plan"]["populations"]))
    evaluation = dataclasses.replace(config.evaluation, fitted_q=True)
    config = dataclasses.replace(config, evaluation=evaluation)
    how = f"cqlray evaluate {path} --fitted-q"
    with saying_how_to_go_on(how), directory.locked(progress.say):
        _open_again(directory, config, progress, fitted_q)
    newest = newest_rows(directory.each_row(FITTED_Q))
    if all(row["fqe_return"] is None for row in newest.values()):
        raise UserError(
            f"{directory.path}: fitted Q evaluation has no finite estimate of any member's newest"
            " snapshot"
        )
    return [newest[member] for member in sorted(newest)]


def evaluate(
    path: AnyPath, episodes: int, progress: ProgressDisplay, trust: bool | str = False
) -> RunRecord:
    """The run's record with fresh tests of its last snapshots, its teacher and the random policy in
    place of the old tests. They also normalise scores. `trust` as in trusted_config.

    A teacher that is known from the dataset's description alone cannot be tested: its returns stay.

    Raises:
        UserError: the run has no environment. And as `start` and trusted_config.
    """
    from cqlray.driver import fresh_tests

    record = require_environment(path)
    directory = RunDirectory.open(path)
    config = trusted_config(directory, trust)
    for population in range(len(directory.manifest()["plan"]["populations"])):
        directory.last_snapshot(population)  # raises UserError if there is none yet
    rows = _open_again(directory, config, progress, lambda run: fresh_tests(run, episodes))
    dataset = record.dataset
    fresh = {row["policy"]: row["returns"] for row in rows if row["policy"] != "student"}
    if dataset is not None and {"teacher", "random"} <= fresh.keys():
        dataset = {**dataset, "reference_returns": fresh}
    kept = set(references_of_data(record)) - fresh.keys()
    others = [row for row in record.evaluations if row["policy"] in kept]
    return dataclasses.replace(record, evaluations=[*others, *rows], dataset=dataset)


def require_environment(path: AnyPath) -> RunRecord:
    """The record of a run whose policies can play episodes.

    Raises:
        UserError: it has no environment. And as load_run.
    """
    from cqlray.results.report import comparison_page

    record = load_run(path)
    comparison_page.require_environment(record)
    return record


def _open_again(
    directory: RunDirectory,
    config: RunConfig,
    progress: ProgressDisplay,
    work: Callable[[Run], Awaitable[T]],
) -> T:
    """Do something with a run on disk."""
    from cqlray.driver import drive
    from cqlray.runtime.joining import connect

    populations = tuple(tuple(p) for p in directory.manifest()["plan"]["populations"])
    spec = environment_of(config)
    with connect() as cluster:
        plan = make_plan(config, members(config), cluster)
        plan = dataclasses.replace(plan, populations=populations)
        return drive(config, directory, plan, spec, progress, work)


def _drive(
    config: RunConfig,
    spec: EnvSpec,
    progress: ProgressDisplay,
    directory: RunDirectory,
    plan_on: Callable[[ClusterResources], Plan],
    dataset_only: bool,
    create: Callable[[Plan], None] | None = None,
) -> None:
    """Hold the run's directory, write its first files if it is new, and run the stages."""
    from cqlray import driver
    from cqlray.runtime.joining import connect

    began, stages = time.monotonic(), driver.dataset_alone if dataset_only else driver.whole_run
    how = f"cqlray resume {directory.path}"
    with saying_how_to_go_on(how, directory), connect() as cluster:
        plan = plan_on(cluster)
        with directory.locked(progress.say):
            if create is not None:
                create(plan)
            lines = plan.lines(config.dataset is not None)
            for line in [f"run          {directory.path}", *lines]:
                progress.say(line)
            work = partial(driver.session, work=stages, began=began)
            driver.drive(config, directory, plan, spec, progress, work)


def _with_video(
    directory: RunDirectory, config: RunConfig, progress: ProgressDisplay
) -> RunDirectory:
    """Record the video that the config asks for. If that fails, a line says why, and the run is as
    good as without.
    """
    if (
        config.evaluation.video
        and not directory.manifest()["dataset_only"]
        and not (directory / VIDEO).is_file()
    ):
        try:
            require_environment(directory.path)
            video.record(str(directory.path), trust=True)  # who made or resumed it did
        except Exception as error:
            progress.say(f"no video: {error}")
    return directory


@contextmanager
def saying_how_to_go_on(command: str, run: RunDirectory | None = None) -> Iterator[None]:
    """Add to the message of a stop or a failure how to go on: nothing on disk is lost.

    If `run` is given, only once there is something of it to go on with.
    """
    from cqlray.runtime.cluster import FROM_RAY, describe

    try:
        yield
    except (Interrupted, KeyboardInterrupt, ActorLost, StorageFailure, FROM_RAY) as error:
        if run is not None and not (run / CONFIG).exists():
            raise
        how = f"go on with: {command}"
        if isinstance(error, Interrupted | KeyboardInterrupt):
            raise Interrupted(f"stopped; {how}") from None
        if isinstance(error, ActorLost | StorageFailure):
            raise type(error)(f"{error}; {how}") from error
        what = describe(error)
        raise ActorLost(f"{what} (--debug shows the traceback); {how}") from error


def result(directory: RunDirectory, record: RunRecord | None = None) -> dict[str, Any]:
    """The summary of a run, as --json prints it.

    After fitted Q evaluation its members have fqe_return and fqe_updates, of their newest snapshot
    that has an estimate; both are None for a member without one. `verdict` says whether the members
    beat the log, `actions` what the best one does differently.
    """
    record = record or load_run(directory.path)
    samples, seed = record.config["evaluation"]["bootstrap_samples"], record.config["seed"]
    summary = summarize(record, samples, seed)
    estimates = fqe_returns(record)
    if estimates:
        for member in summary["members"]:
            fitted = estimates.get(member["member"], {})
            newest = max(fitted, default=None)
            estimate = None if newest is None else fitted[newest]
            member |= {"fqe_return": estimate, "fqe_updates": newest}
    return {
        **summary,
        "verdict": verdict_words.as_json(record),
        "actions": policy_actions.as_json(record),
        "run_dir": str(directory.path),
        "seconds": directory.manifest().get("seconds", 0.0),
    }


def default_name(config: RunConfig) -> str:
    """runs/ENVIRONMENT-DATE-TIME."""
    env = config.env.id.split(":")[-1].replace("/", "-").lower()
    return f"runs/{env}-{datetime.now():%Y%m%d-%H%M%S}"
