"""How good the students are, snapshot by snapshot: episodes in the environment, and fitted Q
evaluation from data alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from cqlray.algorithms.fqe import FQEConfig
from cqlray.runtime.cluster import Lost, put
from cqlray.runtime.crew import Crew, Row
from cqlray.storage.locations import Location
from cqlray.workers.fitted_q import POLICIES_AT_ONCE, FittedQ

TESTS, FITS = "evaluations.jsonl", "fqe.jsonl"


class Judges:
    """Hands snapshots to evaluators and to fitted Q, while the learners go on, and writes what they
    say.

    Fitted Q takes several policies for little more than one. Which snapshots go into one call is
    fixed by their updates, so that the numbers, which depend on it by rounding, are the same
    however a run went.
    """

    def __init__(self, crew: Crew, data: Callable[[], list[Any]], tests: bool, fits: bool) -> None:
        """`data` gives references to the shards or one StoredData; `tests` and `fits` say which
        judges there are.
        """
        self.crew, self.config, self.plan, self.data = crew, crew.config, crew.plan, data
        self.files = [file for file, wanted in ((TESTS, tests), (FITS, fits)) if wanted]
        self.at_work: set[tuple[str, int, int]] = (
            set()
        )  # file, population and updates of what is in flight
        self.blocks: dict[
            tuple[int, int], dict[int, Any]
        ] = {}  # (population, block) -> updates -> snapshot, until all are in
        self.newest = "no test yet"
        self.watch: Callable[[], None] = lambda: None  # called when rows came

    def judge(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin all judgements of a snapshot, a reference; rows are written as they come."""
        if TESTS in self.files:
            self._test(population, updates, snapshot)
        if FITS in self.files:
            self._gather(population, updates, snapshot)

    def make_up_for(self, population: int, done: int) -> None:
        """Begin what an earlier session or learner did not get to: snapshots up to `done` that lack
        a row.
        """
        snapshots = snapshots_of(self.crew, population, done)
        for file in self.files:
            rows = [
                row
                for row in self.crew.directory.rows(file)
                if row.get("policy", "student") == "student"
            ]
            lacking = missing(snapshots, self.plan.populations[population], rows)
            if file == FITS:
                blocks = {self._block(population, updates) for updates in lacking}
                lacking = [
                    updates for updates in snapshots if self._block(population, updates) in blocks
                ]
            for updates in sorted(lacking):
                if (file, population, updates) not in self.at_work:
                    begin = self._test if file == TESTS else self._gather
                    begin(population, updates, put(snapshots[updates].read_bytes()))

    # -- tests -------------------------------------------------------------------------------------

    def _test(self, population: int, updates: int, snapshot: Any) -> None:
        own = self.plan.populations[population]

        def tested(rows: list[Row]) -> None:
            places = zip(own, rows, strict=True)
            self._keep(
                TESTS,
                [
                    {"policy": "student", "member": member, "updates": updates, **row}
                    for member, row in places
                ],
            )
            for member, row in zip(own, rows, strict=True):
                self.crew.metrics.tested(str(member), row["returns"])
            returns = [value for row in rows for value in row["returns"]]
            self.newest = f"mean return {sum(returns) / len(returns):.0f} at {updates:,}"
            self.at_work.discard((TESTS, population, updates))

        def gone(
            _: Lost,
        ) -> None:  # with its learner: it is made again, or judged from its file in the end
            self.at_work.discard((TESTS, population, updates))

        self.at_work.add((TESTS, population, updates))
        self.crew.begin_test(snapshot, "evaluation", self.config.evaluation.episodes, tested, gone)

    # -- fitted Q ----------------------------------------------------------------------------------

    def _block(self, population: int, updates: int) -> tuple[int, int]:
        """Population and number of the block that a snapshot belongs to."""
        index = -(-updates // self.config.evaluation.interval) - 1
        return population, index // self._per_block(population)

    def _per_block(self, population: int) -> int:
        return max(1, POLICIES_AT_ONCE // len(self.plan.populations[population]))

    def _gather(self, population: int, updates: int, snapshot: Any) -> None:
        """Begin a block's fits once its snapshots are all there; the last one may be small."""
        key = self._block(population, updates)
        block = self.blocks.setdefault(key, {})
        block[updates] = snapshot
        self.at_work.add((FITS, population, updates))
        interval, per_block = self.config.evaluation.interval, self._per_block(population)
        goal = self.config.cql.num_updates
        ends = {
            min((key[1] * per_block + place + 1) * interval, goal) for place in range(per_block)
        }
        if block.keys() == ends:
            self._fit(population, self.blocks.pop(key))

    def fit_what_is_there(self) -> None:
        """Begin the fits of the blocks that will not fill up: those of a run that was interrupted.

        Once the run has gone on and such a block is whole, it is fitted anew, and its later rows
        are the ones that count.
        """
        for key in sorted(self.blocks):
            self._fit(key[0], self.blocks.pop(key))

    def _fit(self, population: int, block: dict[int, Any]) -> None:
        def finished(rows: list[Row], _: Sequence[Any] = ()) -> None:
            self.at_work -= {(FITS, population, updates) for updates in block}
            if not rows:
                return
            self._keep(FITS, rows)
            if TESTS not in self.files:
                last = [
                    row["fqe_return"]
                    for row in rows
                    if row["updates"] == max(block) and row["fqe_return"] is not None
                ]
                self.newest = (
                    f"estimated return {sum(last) / max(1, len(last)):.1f} at {max(block):,}"
                )

        team = self.crew.team(
            FittedQ,
            max(1, self.plan.fitted_q),
            "fitted_q",
            self.config.seed,
            self.crew.spec.scaling,
            self.config.cql.discount,
            1,
            FQEConfig(),
            *self.data(),
        )
        snapshots = [block[updates] for updates in sorted(block)]
        team.call(partial(_evaluate, snapshots), finished, lambda _: finished([]))

    def _keep(self, file: str, rows: list[Row]) -> None:
        self.crew.append(file, rows)
        self.watch()


def _evaluate(snapshots: list[Any], actor: Any) -> Any:
    return actor.evaluate.remote(*snapshots)


def snapshots_of(crew: Crew, population: int, done: int) -> dict[int, Location]:
    """A population's snapshot files up to `done` updates, by their updates."""
    folder = Location.parse(crew.directory / f"snapshots/population-{population}")
    found = {int(path.stem): path for path in folder.glob("*.safetensors")}
    return {updates: path for updates, path in found.items() if updates <= done}


def missing(snapshots: dict[int, Location], members: Sequence[int], rows: list[Row]) -> list[int]:
    """Updates of the snapshots that lack a row of some member, rising."""
    found = {(row["member"], row["updates"]) for row in rows}
    return sorted(
        updates
        for updates in snapshots
        if not all((member, updates) in found for member in members)
    )
