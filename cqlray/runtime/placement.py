"""Decide which processes run where: a pure function of config and cluster, without Ray."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cqlray.config.members import Member
from cqlray.config.schema import RunConfig
from cqlray.errors import UserError

MAX_ROLLOUT_WORKERS = 64
MAX_EVALUATORS = 16
SMALLEST_SHARE = 0.01


@dataclass(frozen=True)
class ClusterResources:
    """The resources that Ray reports."""

    cpus: float
    gpus: float = 0.0
    nodes: int = 1
    memory: float = math.inf  # bytes that Ray has for tasks and actors
    node_cpus: tuple[float, ...] = ()  # of each node; empty if nodes need not be told apart
    grows: bool = False  # an autoscaler adds nodes on demand
    most_cpus: float = math.inf  # the autoscaler's limit, if it is known
    most_gpus: float = math.inf

    def grown(self, cpus: float, gpus: float) -> ClusterResources:
        """The cluster after an autoscaler, if there is one, has grown it to these amounts."""
        if not self.grows:
            return self
        return replace(
            self,
            cpus=max(self.cpus, min(cpus, self.most_cpus)),
            gpus=max(self.gpus, min(gpus, self.most_gpus)),
            node_cpus=(),
        )


@dataclass(frozen=True)
class Plan:
    """The number of processes of each role, and the share of a CPU that each asks Ray for."""

    cluster: ClusterResources
    rollout_workers: int
    evaluators: int
    fitted_q: int  # processes that evaluate policies from the data alone
    populations: tuple[tuple[int, ...], ...]  # member indices
    learners: int  # at one time; more populations than learners take turns
    gpu: bool
    threads: int
    cpus: dict[str, float]  # role -> the share of each of its processes

    @property
    def memory_per_learner(self) -> float:
        """Bytes for each learner, if they are spread evenly over equal nodes."""
        nodes = max(1, self.cluster.nodes)
        return self.cluster.memory / nodes / math.ceil(max(1, self.learners) / nodes)

    def needs(self) -> str:
        """The resources that all processes of the larger stage ask for."""
        teaching = self.cpus["teacher"] + self.rollout_workers * self.cpus["rollout_worker"]
        training = self.learners * self.cpus["learner"]
        cpus = max(teaching, training) + self.evaluators * self.cpus["evaluator"]
        return f"{math.ceil(cpus)} CPUs, {self.learners if self.gpu else 0} GPUs"

    def lines(self, offline_only: bool) -> list[str]:
        """The plan as text for the user."""
        where = (
            f"{self.cluster.cpus:g} CPUs, {self.cluster.gpus:g} GPUs on"
            f" {_count(self.cluster.nodes, 'node')}"
        )
        if self.cluster.grows:
            where += (
                f"; the autoscaler is asked for what this plan needs beyond that ({self.needs()})"
            )
        sizes = " + ".join(str(len(population)) for population in self.populations)
        device = "a GPU each" if self.gpu else f"{_count(self.threads, 'CPU thread')} each"
        lines = [f"cluster      {where}"]
        if not offline_only:
            lines.append(
                f"teaching     1 teacher, {_count(self.rollout_workers, 'rollout worker')}"
            )
        learners = f"{_count(self.learners, 'learner')} ({device}) for {sizes} members"
        fits = f", {self.fitted_q} of fitted Q" if self.fitted_q else ""
        return [*lines, f"training     {learners}, {_count(self.evaluators, 'evaluator')}{fits}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def make_plan(config: RunConfig, members: Sequence[Member], cluster: ClusterResources) -> Plan:
    """Divide the cluster among the roles.

    Raises:
        UserError: the config asks for what the cluster does not have.
    """
    wanted, present = config.resources, cluster
    threads = wanted.threads_per_learner or 1
    cluster = cluster.grown(
        max(wanted.rollout_workers or 1, (wanted.learners or 1) * threads), wanted.gpus or 0
    )
    gpus = int(cluster.gpus) if wanted.gpus is None else wanted.gpus
    if gpus > cluster.gpus:
        what = "its autoscaler brings at most" if cluster.grows else "the cluster has"
        raise UserError(
            f"resources.gpus is {gpus}, but {what} {cluster.gpus:g} GPUs; ask for at most that, or"
            " add nodes"
        )
    cores = max(1, int(cluster.cpus))
    structures = [
        [m.index for m in group]
        for _, group in itertools.groupby(sorted(members, key=_order), key=_order)
    ]
    learners = _learners(wanted.learners, threads, gpus, len(members), cluster)
    populations = tuple(tuple(part) for part in _split(structures, learners))
    learners = min(learners, len(populations))
    workers = wanted.rollout_workers or min(cores, MAX_ROLLOUT_WORKERS)
    evaluators = wanted.evaluators or min(learners, MAX_EVALUATORS)
    fits = evaluators if config.evaluation.fitted_q else 0
    return Plan(
        cluster=present,
        rollout_workers=workers,
        evaluators=evaluators,
        fitted_q=fits,
        populations=populations,
        learners=learners,
        gpu=gpus > 0,
        threads=threads,
        cpus=_shares(workers, evaluators, fits, learners, 0 if gpus else threads, cluster),
    )


def _learners(
    wanted: int | None, threads: int, gpus: int, members: int, cluster: ClusterResources
) -> int:
    """The number of learners that have both work and room.

    Raises:
        UserError: there is no room for what is wanted.
    """
    cores = max(1, int(cluster.cpus))
    slots = gpus or sum(int(cpus) // threads for cpus in cluster.node_cpus or (cores,))
    largest = int(max(cluster.node_cpus, default=cores)) or 1
    if threads > largest:
        raise UserError(
            f"resources.threads_per_learner is {threads}, but the largest node has {largest} CPUs;"
            f" ask for at most {largest}"
        )
    learners = wanted or max(1, min(slots, members))
    if learners > max(1, slots):
        of_cores = f"{cores} CPUs with {_count(threads, 'thread')} for each learner"
        what = f"{gpus} GPUs" if gpus else of_cores
        raise UserError(
            f"resources.learners is {learners}, but there are {what}; ask for at most"
            f" {max(1, slots)}"
        )
    return learners


def _order(member: Member) -> str:
    return repr(member.structure)


def _split(structures: list[list[int]], parts: int) -> list[list[int]]:
    """Group members of one structure into populations; split the largest so that `parts` learners
    have work.
    """
    pieces = [1] * len(structures)
    while sum(pieces) < parts:
        largest = max(range(len(structures)), key=lambda i: (len(structures[i]) / pieces[i], -i))
        if len(structures[largest]) == pieces[largest]:
            break
        pieces[largest] += 1
    populations = []
    for members, count in zip(structures, pieces, strict=True):
        size, extra = divmod(len(members), count)
        ends = list(itertools.accumulate([size + (piece < extra) for piece in range(count)]))
        populations += [members[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return sorted(populations)


def _shares(
    workers: int, evaluators: int, fits: int, learners: int, threads: int, cluster: ClusterResources
) -> dict[str, float]:
    """CPUs for each process of a role, scaled down if a stage's processes together want too many.

    A GPU decides where a learner with one runs (no `threads`): others' CPUs on its node must not
    keep it away. On several nodes enough CPUs stay free that, however processes are placed, some
    node has room for the largest share; a process that finds no room would wait for ever.
    """
    cpus = max(cluster.cpus, 1.0)
    nodes = sum(of_node > 0 for of_node in cluster.node_cpus)
    teaching = {
        "teacher": (1, 1.0),
        "rollout_worker": (workers, 0.5),
        "evaluator": (evaluators, 0.25),
    }
    training = {
        "learner": (learners, float(threads)),
        "evaluator": (evaluators, 0.25),
        "fitted_q": (fits, 0.25),
    }
    shares: dict[str, float] = {}
    for stage in (teaching, training):
        spare = nodes * max(weight for _, weight in stage.values()) if nodes > 1 else 0.0
        scale = min(1.0, cpus / (sum(count * weight for count, weight in stage.values()) + spare))
        for role, (_, weight) in stage.items():
            share = int(weight * scale / SMALLEST_SHARE) * SMALLEST_SHARE
            if role == "learner" and threads == 0:
                shares[role] = SMALLEST_SHARE
                continue
            if share < SMALLEST_SHARE:
                most = max(stage, key=lambda name: stage[name][0])
                raise UserError(
                    f"{stage[most][0]} processes of role {most} are too many for {cpus:g} CPUs; ask"
                    " for fewer"
                )
            shares[role] = round(min(share, shares.get(role, share)), 2)
    return shares
