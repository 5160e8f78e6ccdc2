"""`cqlray doctor`: what Ray, torch, GPUs, storage and the environment look like from here."""

from __future__ import annotations

import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cqlray.cli.parser import CommandParser
from cqlray.cli.statuses import FAILURE
from cqlray.config.schema import EnvConfig
from cqlray.errors import UserError
from cqlray.storage.locations import AnyPath, Location, any_path


def doctor(words: list[str]) -> int:
    """Run `cqlray doctor WORDS`; exit status 0 where all is well."""
    parser = CommandParser(
        "doctor", "What Ray, torch, GPUs, storage and the environment look like from here."
    )
    parser.add_argument(
        "--env", default="Pendulum-v1", metavar="TEXT", help="environment to try [Pendulum-v1]"
    )
    parser.add_argument(
        "--out",
        type=any_path,
        default="runs",
        metavar="DIRECTORY",
        help="where runs are to be [runs]",
    )
    options = parser.parse_args(words)

    well = True
    for name, good, found in examine(EnvConfig(options.env), options.out):
        print(f"{'ok  ' if good else 'FAIL'} {name:<12} {found}")
        well = well and good
    return 0 if well else FAILURE


def examine(env: EnvConfig, out: AnyPath) -> Iterator[tuple[str, bool, str]]:
    """Yields name, whether all is well, and what was found, for each thing that a run needs."""
    checks: list[tuple[str, Callable[[], str]]] = [
        (
            "python",
            lambda: f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs",
        ),
        ("packages", _packages),
        ("torch", _torch),
        ("environment", lambda: _environment(env)),
        ("storage", lambda: _storage(out)),
        ("ray", _ray),
    ]
    for name, check in checks:
        try:
            yield name, True, check()
        except Exception as error:
            yield name, False, str(error).strip().splitlines()[0]


def _packages() -> str:
    found = []
    for name in ("cqlray", "ray", "torch", "gymnasium", "numpy", "pyarrow", "tensorboard"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def _torch() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    size = 1024
    left, right = torch.rand(size, size), torch.rand(size, size)
    torch.mm(left, right)
    started = time.perf_counter()
    torch.mm(left, right)
    rate = 2 * size**3 / (time.perf_counter() - started) / 1e9
    return (
        f"{torch.get_num_threads()} threads, {rate:,.0f} GFLOP/s; GPUs:"
        f" {', '.join(names) or 'none'}"
    )


def _environment(env: EnvConfig) -> str:
    from cqlray.algorithms.policy import UniformActor
    from cqlray.envs.make import describe_env, make_env
    from cqlray.envs.rollout import rollout

    spec = describe_env(env)
    made = make_env(env)
    started = time.perf_counter()
    (episode,) = rollout(UniformActor(spec.action_dim, [0]), [made], [0], spec.scaling)
    rate = len(episode) / (time.perf_counter() - started)
    return (
        f"{spec.id}: {spec.observation_dim} observations, {spec.action_dim} actions in"
        f" {list(spec.action_low)} to {list(spec.action_high)}, {len(episode)} steps in an episode,"
        f" {rate:,.0f} steps/s"
    )


def _storage(out: AnyPath) -> str:
    """Write, read and remove a file as a run does, under a name that nothing else has."""
    trial = Location.parse(out) / f".cqlray-doctor-{uuid.uuid4().hex}"
    trial.write(b"x")
    if trial.read_bytes() != b"x":
        raise RuntimeError(f"{out}: what was written is not what is read")
    trial.remove()
    free = f", {shutil.disk_usage(out).free / 2**30:,.0f} GiB free" if isinstance(out, Path) else ""
    return f"{out} can be written, read and removed from{free}"


def _ray() -> str:
    from cqlray.runtime.joining import connect

    started = time.monotonic()
    try:
        with connect() as cluster:
            seconds = time.monotonic() - started
            return (
                f"{cluster.nodes} nodes, {cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs; up in"
                f" {seconds:.1f} s"
            )
    except UserError as error:
        raise RuntimeError(str(error)) from None
