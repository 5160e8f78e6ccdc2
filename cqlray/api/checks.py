"""What is checked before a run begins, so that mistakes end it before anything is written."""

from __future__ import annotations

import dataclasses
import errno
import os

from cqlray.config.members import members
from cqlray.config.schema import NO_ENVIRONMENT, RunConfig
from cqlray.data.checks.findings import require_valid
from cqlray.data.checks.validation import validate
from cqlray.data.source import Source, columns_in_words, number_names
from cqlray.envs.bounds import outside_bounds
from cqlray.envs.make import EnvSpec, describe_env
from cqlray.envs.recorded import open_configured, require_same_spaces, spec_of
from cqlray.errors import UserError
from cqlray.runtime.progress import ProgressDisplay
from cqlray.storage.locations import AnyPath, Location


def without_tests(config: RunConfig) -> RunConfig:
    """The config, without tests of the students where there is no environment to test them in.

    Raises:
        UserError: there is no dataset either.
    """
    if config.env.id != NO_ENVIRONMENT:
        return config
    if config.dataset is None:
        raise UserError("env.id none: only for training on logged data; name an environment")
    fitted_q = config.evaluation.fitted_q is not False
    return dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, episodes=0, fitted_q=fitted_q)
    )


def require_place(path: AnyPath) -> None:
    """Check that a new run's directory can be made, as far as that shows without writing.

    Raises:
        UserError: what it is to be made in is a file, or must not be written to.
    """
    if isinstance(path, Location):
        return
    above = next(place for place in path.absolute().parents if place.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        reason = os.strerror(errno.EACCES if above.is_dir() else errno.ENOTDIR)
        raise UserError(f"out {str(path)!r}, below {above}, cannot be written: {reason}")


def environment_of(config: RunConfig, progress: ProgressDisplay | None = None) -> EnvSpec:
    """The environment's description; the dataset, if there is one, is checked to be from it. With
    `progress` all of the dataset is read and checked, too.

    Raises:
        UserError: there is no such environment; the dataset is from another one, or has errors.
    """
    if config.dataset is None:
        return describe_env(config.env)
    source = open_configured(config)
    recorded = source.environment.get("id")
    # Minari's files give an environment's id without its module, which the user adds.
    if (
        recorded is not None
        and config.env.id != NO_ENVIRONMENT
        and not f":{config.env.id}".endswith(f":{recorded}")
    ):
        raise UserError(
            f"dataset {config.dataset!r} is from {recorded}, not from env.id {config.env.id!r}"
        )
    spec = spec_of(source)
    if config.evaluation.episodes:
        played = describe_env(config.env)
        require_same_spaces(source, played)
        spec = played
    if progress is not None:
        _check_data(source, config, progress)
    return spec


def _check_data(source: Source, config: RunConfig, progress: ProgressDisplay) -> None:
    if source.columns:
        progress.say(f"columns      {columns_in_words(source.columns)}")
    for line in source.reading:
        progress.say(f"reading      {line}")
    report = validate(source, max(member.cql.batch_size for member in members(config)))
    for warning in report.warnings:
        progress.say(f"warning: {warning}")
    assert config.dataset is not None
    require_valid(report, config.dataset)
    if config.evaluation.episodes and (seen := report.observations) is not None:
        names = number_names(source.columns, "observation", len(seen.minimum))
        for line in outside_bounds(config.env, names, seen.minimum, seen.maximum):
            progress.say(f"warning: {line}")
