"""The missing values of a log: its rows filled, its episodes split or left out, by rules."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cqlray.data import missing
from cqlray.data.episode import Array
from cqlray.data.formats.log_columns import LogColumns
from cqlray.data.formats.log_rows import LogRows
from cqlray.data.missing import Rule
from cqlray.data.source import listed
from cqlray.errors import UserError
from cqlray.storage.rows import MissingRules


@dataclass
class Counts:
    """What was done, to be told."""

    values: Counter[tuple[int, str]] = field(default_factory=Counter)  # by rule and column
    episodes: Counter[tuple[int, str]] = field(default_factory=Counter)
    parts: int = 0  # parts without a step, left out
    step_gaps: int = 0
    gap_episodes: int = 0

    def add_gaps(self, gaps: Array, episode: Array) -> None:
        """Note where steps are missing, [n] bool."""
        self.step_gaps += int(gaps.sum())
        self.gap_episodes += len(np.unique(episode[gaps]))

    def notes(self, rules: Sequence[Rule], step: str | None) -> list[str]:
        """A line for each rule and column."""
        done = {
            "forward": "filled with the value before",
            "constant": "filled with the constant",
            "indicator": "filled and marked in a column of its own",
            "split": "the episode split there, the part before it truncated",
            "drop": "the episode left out",
        }
        lines = [
            f"column {name}: {count:,} missing in {_counted(self.episodes[index, name])}:"
            f" {done[rules[index].how]} ({rules[index].text})"
            for (index, name), count in sorted(self.values.items())
        ]
        if self.step_gaps:
            lines.append(
                f"column {step}: {self.step_gaps:,} gaps in {_counted(self.gap_episodes)}:"
                f" {done['split']}"
            )
        if self.parts:
            lines.append(f"{self.parts:,} parts of episodes without a step left out")
        return lines


def _counted(number: int) -> str:
    return f"{number:,} episode{'s' * (number != 1)}"


class MissingValues:
    """Rules for the columns of a log.

    Args:
        observation, action: the name of each dimension's column.
        step: the column of steps; split is for gaps in it.

    Raises:
        UserError: a rule is for no column, or cannot be for its column.
    """

    def __init__(
        self,
        texts: Sequence[str],
        observation: Sequence[str],
        action: Sequence[str],
        reward: str,
        step: str | None,
    ) -> None:
        self.rules = [missing.parse(text) for text in texts]
        self.observation = list(observation)
        self.names = [*observation, *action, reward]
        self.chosen = missing.chosen(self.rules, self.names)
        self.indicated = missing.indicated(self.rules, observation)
        self.splits_steps = False
        for rule, columns in zip(self.rules, self.chosen, strict=True):
            is_step = step is not None and rule.matches(step)
            self.splits_steps |= is_step and rule.how == "split"
            if not columns.any() and not (is_step and rule.how == "split"):
                known = [*dict.fromkeys(self.names), *([step] if step else [])]
                raise UserError(
                    f"columns.missing {rule.text!r} is for no column in use; these are"
                    f" {listed(known)} (gaps of the steps can be split alone)"
                )
            if rule.how == "indicator" and columns[len(observation) :].any():
                raise UserError(
                    f"columns.missing {rule.text!r}: indicators are for observations alone, and"
                    f" {self.names[len(observation) + int(columns[len(observation) :].argmax())]!r}"
                    " is none"
                )

    @staticmethod
    def of(columns: LogColumns, widths: Mapping[str, int]) -> MissingValues:
        """For these columns, each of so many numbers."""
        observation, action = (
            [name for name in names for _ in range(widths.get(name, 0))]
            for names in (columns.observation, columns.action)
        )
        return MissingValues(columns.missing, observation, action, columns.reward, columns.step)

    @property
    def indicators(self) -> list[str]:
        """The names of the columns added."""
        names = zip(self.observation, self.indicated, strict=True)
        return [f"{name} missing" for name, marked in names if marked]

    @property
    def indicator_columns(self) -> list[str]:
        """The same, those of a vector once."""
        return list(dict.fromkeys(self.indicators))

    def description(self) -> MissingRules:
        """What a policy needs to fill alike: `missing` in dataset.json."""
        return {"rules": [rule.text for rule in self.rules], "observation": self.observation}

    def mended(self, blocks: Iterator[LogRows], counts: Counts) -> Iterator[LogRows]:
        """Whole episodes, filled, split and left out."""
        d = len(self.observation)
        for rows in blocks:
            values = np.concatenate(
                [rows.observations, rows.actions, rows.rewards[:, None]], axis=1
            )
            is_last = np.append(rows.first[1:], True)
            marks, split, dropped = self.apply(values, is_last & rows.no_step, rows.first, counts)
            # A row with an observation still is the final one of the part before.
            unseen, cut = np.asarray(split[:, :d].any(axis=1)), np.asarray(split.any(axis=1))
            after = np.append(unseen[1:], False) & ~is_last
            changed = dataclasses.replace(
                rows,
                observations=np.concatenate(
                    [values[:, :d].astype(rows.observations.dtype), marks], axis=1
                ),
                actions=values[:, d:-1].astype(rows.actions.dtype),
                rewards=values[:, -1].astype(rows.rewards.dtype),
                first=rows.first | np.concatenate([[False], cut[:-1]]),
                cut=rows.cut | cut | after,
            )
            whole = rows.first & is_last & ~changed.cut
            kept = self._with_steps(changed, ~(unseen | dropped), whole, counts)
            if len(kept):
                yield kept

    def _with_steps(self, rows: LogRows, keep: Array, whole: Array, counts: Counts) -> LogRows:
        """The rows to keep without the parts that have no step; whole episodes of one row stay."""
        rows = rows.map(lambda values: values[keep])
        alone = rows.first & np.append(rows.first[1:], True) & rows.no_step & ~whole[keep]
        counts.parts += int(alone.sum())
        return rows.map(lambda values: values[~alone])

    def apply(
        self, values: Array, ignored: Array, first: Array, counts: Counts
    ) -> tuple[Array, Array, Array]:
        """Fill whole episodes in place.

        Args:
            values: [n, D + A + 1] observations, actions, rewards.
            ignored: [n] bool: rows whose action and reward do not count.
            first: [n] bool: an episode begins here.

        Returns:
            [n, K] indicators; [n, D + A + 1] bool, where episodes are to be split; [n] bool, the
            rows of episodes to leave out.
        """
        n, width = values.shape
        number = np.cumsum(first) - 1
        starts = np.flatnonzero(first)[number]
        done = np.zeros((n, width), bool)
        done[:, len(self.observation) :] = ignored[:, None]
        marks, split = np.zeros((n, len(self.observation)), np.float32), np.zeros((n, width), bool)
        dropped = np.zeros(n, bool)
        for index, rule in enumerate(self.rules):
            gaps = np.isnan(values) & self.chosen[index] & ~done
            if rule.how == "split":
                split |= gaps
            elif rule.how == "drop":
                dropped |= np.isin(number, number[gaps.any(axis=1)])
            else:
                if rule.how == "indicator":
                    marks[gaps[:, : len(self.observation)]] = 1.0
                missing.filled(rule, values, gaps, starts)
                gaps &= ~np.isnan(values)
            done |= gaps
            self._count(index, gaps, number, counts)
        return marks[:, self.indicated], split, dropped

    def _count(self, index: int, gaps: Array, number: Array, counts: Counts) -> None:
        for column in np.flatnonzero(gaps.any(axis=0)):
            key = (index, self.names[column])
            counts.values[key] += int(gaps[:, column].sum())
            counts.episodes[key] += len(np.unique(number[gaps[:, column]]))
