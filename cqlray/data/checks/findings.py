"""What validation looks for, each with what would be right, and the report of what it found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cqlray.data.moments import Moments
from cqlray.errors import UserError

# Lines printed for one code, and findings kept for one code; the others are only counted.
LINES_PER_CODE = 3
KEPT_PER_CODE = 100


@dataclass(frozen=True)
class Place:
    """Where in the data something is, as far as it is known.

    Row, episode and step count from 0, as the reader counts them.
    """

    file: str = ""
    row: int | None = None
    column: str = ""
    episode: int | None = None
    step: int | None = None

    def __str__(self) -> str:
        parts = [self.file]
        if self.row is not None:
            parts.append(f"row {self.row}")
        elif self.episode is not None:
            parts.append(
                f"episode {self.episode}" + (f", step {self.step}" if self.step is not None else "")
            )
        return ", ".join(part for part in [*parts, self.column] if part)


@dataclass(frozen=True)
class Kind:
    """One thing that validation looks for; the details of the first case are filled into `text` and
    `right`.
    """

    severity: str  # error or warning
    unit: str  # what is counted; nothing where it is found once for the whole data
    text: str
    right: str


KINDS = {
    # The data as a whole
    "unreadable": Kind("error", "", "{message}", ""),
    "empty": Kind(
        "error", "", "there is not one transition", "record or name at least one whole episode"
    ),
    "too_few": Kind(
        "error",
        "",
        "{transitions} transitions; a batch has {batch}",
        "add data, or set the batch size to {transitions} or less",
    ),
    "mixture": Kind(
        "error",
        "part",
        "{found}, but {first}: more than one environment",
        "make one data set for each environment",
    ),
    "bounds": Kind(
        "error", "", "{found}", "give one finite low and one higher high for each action"
    ),
    # Types and shapes
    "shape": Kind("error", "part", "shape {found}", "it should be {expected}"),
    "dtype": Kind("error", "part", "the values are {found}", "they should be {expected}"),
    "dimension": Kind(
        "error",
        "part",
        "{found} numbers a row; the environment has {expected}",
        "name the columns or the environment that belong together",
    ),
    # Values
    "gaps": Kind(
        "error",
        "",
        "the value is nan where it is missing: {found}",
        "--fix would leave out {affected} episodes; instead, say by column what is done about them,"
        " such as --columns.missing '{example}=forward:3' '*=split' (or =0, =indicator, =drop)",
    ),
    "not_finite": Kind(
        "error",
        "row",
        "the value is {value}",
        "every value must be a finite float32: fill it in, or drop these episodes (--fix)",
    ),
    "out_of_bounds": Kind(
        "error",
        "row",
        "actions outside [{low:g}, {high:g}] by up to {worst:.3g}",
        "record what was executed, or correct the bounds; --fix clips what is outside by at most 1"
        " % of the range",
    ),
    "next_observation": Kind(
        "error",
        "row",
        "the next observation is {found:g}, the observation of the following step is {expected:g}",
        "within an episode they must be equal: check the order of the rows and where episodes end",
    ),
    "constant_reward": Kind(
        "error",
        "",
        "every reward is {value:g}: there is nothing to learn",
        "name the column of the reward",
    ),
    # Episodes
    "both_ends": Kind(
        "error",
        "step",
        "termination and truncation are both set",
        "set one; --fix keeps the termination, which stops the target",
    ),
    "end_inside": Kind(
        "error",
        "step",
        "termination or truncation is set, but the episode goes on",
        "begin a new episode after it, or clear the flag",
    ),
    "no_ends": Kind(
        "error",
        "episode",
        "no episode ends: neither a termination nor a truncation is set anywhere",
        "name the columns of both; if every end is a time limit, --fix marks the last steps as"
        " truncated",
    ),
    "zero_length": Kind("error", "episode", "an episode without a step", "drop it (--fix)"),
    "duplicate_episode": Kind(
        "error",
        "episode",
        "the same episode, to the bit, as {first}",
        "keep one; --fix drops the later ones",
    ),
    # Warnings
    "open_episode": Kind(
        "warning",
        "episode",
        "the last step is neither terminated nor truncated; training takes it as truncated",
        "set the flag; --fix marks it as truncated",
    ),
    "no_bounds": Kind(
        "warning",
        "",
        "the data does not say finite bounds of the actions, so they were not checked",
        "name the environment or its bounds",
    ),
    "constant_reward_with_ends": Kind(
        "warning",
        "",
        "every reward is {value:g}: only the time until the termination can be learnt",
        "if that is not the task, name the column of the reward",
    ),
    "constant_observation": Kind(
        "warning", "", "the value is always {value:g}", "leave out columns that never change"
    ),
    "unscaled": Kind(
        "warning",
        "",
        "standard deviations from {smallest:.3g} ({smallest_column}) to {largest:.3g}"
        " ({largest_column})",
        "bring the columns to like units, or leave cql.observation_normalization on",
    ),
    "offset": Kind(
        "warning",
        "",
        "mean {mean:.6g}, standard deviation {std:.3g}: float32 keeps few digits of what changes",
        "subtract the offset before writing the data",
    ),
    "saturated": Kind(
        "warning",
        "",
        "{share:.0%} of the actions stand at a bound, {low:g} or {high:g}",
        "check the bounds and the scaling of the actions",
    ),
    "narrow": Kind(
        "warning",
        "",
        "actions from {smallest:.3g} to {largest:.3g} use {share:.1%} of the bounds [{low:g},"
        " {high:g}]",
        "check the unit of the actions; the policy is trained over the whole bounds",
    ),
    "crowded": Kind(
        "warning",
        "",
        "{share:.0%} of the actions lie in [{begin:.4g}, {end:.4g}], one twentieth of the bounds"
        " [{low:g}, {high:g}]",
        "give bounds that fit what is done (--columns.action-low and --columns.action-high), or the"
        " action's logarithm as its column: the policy is trained over the whole bounds",
    ),
    "whole_numbers": Kind(
        "warning",
        "",
        "the actions are whole numbers alone: {choices}",
        "amounts may be; choices are no continuous action, for which alone policies are trained",
    ),
    "reward_tail": Kind(
        "warning",
        "",
        "the largest reward is {largest:.3g}, the median of those that are not 0 is {median:.3g}"
        " (absolute values)",
        "look for a unit or a marker value among the rewards; scale or clip them",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (error) or worth a look (warning), at its first place in one column
    of one file.
    """

    severity: str
    code: str
    place: Place
    text: str
    fix: str  # what would be right
    count: int  # how many of the kind's unit

    def __str__(self) -> str:
        unit = KINDS[self.code].unit
        many = f" (first of {self.count:,} {unit}s)" if self.count > 1 and unit else ""
        where = f"{self.place}: " if str(self.place) else ""
        return f"{where}{self.text}{many}" + (f"; {self.fix}" if self.fix else "")


@dataclass(frozen=True)
class Report:
    """Everything found in one source, errors first."""

    source: str
    episodes: int
    transitions: int
    findings: tuple[Finding, ...]
    # code -> how many more findings were not kept, and the sum of their counts
    unlisted: dict[str, tuple[int, int]]
    observations: Moments | None = None  # of all of them; None where none could be read

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "warning"]

    @property
    def codes(self) -> set[str]:
        """The codes of all findings, keys of KINDS."""
        return {finding.code for finding in self.findings}

    @property
    def num_errors(self) -> int:
        """Errors found, those that were not kept included."""
        return len(self.errors) + sum(
            n for code, (n, _) in self.unlisted.items() if KINDS[code].severity == "error"
        )

    def lines(self) -> list[str]:
        """One line each, errors first; at most LINES_PER_CODE of one code, then how many more there
        are.
        """
        lines = []
        for code in dict.fromkeys(finding.code for finding in self.findings):
            found = [finding for finding in self.findings if finding.code == code]
            lines += [f"{finding.severity}: {finding}" for finding in found[:LINES_PER_CODE]]
            places, count = self.unlisted.get(code, (0, 0))
            places += len(found[LINES_PER_CODE:])
            count += sum(finding.count for finding in found[LINES_PER_CODE:])
            if places:
                unit = KINDS[code].unit or "column"
                lines.append(
                    f"{found[0].severity}: and {count:,} more {unit}{'s' * (count != 1)} like these"
                )
        return lines


def require_valid(report: Report, name: str) -> None:
    """Check that a report has no errors; it may have warnings.

    Raises:
        UserError: the report has errors; the first one, and the command that shows all.
    """
    if errors := report.errors:
        if errors[0].code == "unreadable":
            raise UserError(errors[0].text)
        total = report.num_errors
        shows = "it" if total == 1 else f"all {total:,} errors"
        raise UserError(
            f"dataset {name!r}: {errors[0]} (cqlray dataset validate {name} shows {shows})"
        )


@dataclass
class _Entry:
    place: Place
    count: int
    worst: float
    details: dict[str, Any]


@dataclass
class Tally:
    """Collects findings: one entry for each code, file and column, with its first place."""

    entries: dict[str, dict[tuple[str, str], _Entry]] = field(default_factory=dict)
    unlisted: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(
        self, code: str, place: Place, count: int = 1, worst: float = 0.0, **details: Any
    ) -> None:
        """Note `count` more cases, the first of them at `place`, the largest amount `worst`."""
        of_code = self.entries.setdefault(code, {})
        known = of_code.get((place.file, place.column))
        if known is not None:
            known.count += count
            known.worst = max(known.worst, worst)
        elif len(of_code) < KEPT_PER_CODE:
            of_code[place.file, place.column] = _Entry(place, count, worst, details)
        else:
            places, counted = self.unlisted.get(code, (0, 0))
            self.unlisted[code] = (places + 1, counted + count)

    def rename(self, code: str, other: str) -> None:
        """Report everything found as `code` under the code `other`."""
        self.entries[other] = self.entries.pop(code)
        if code in self.unlisted:
            self.unlisted[other] = self.unlisted.pop(code)

    def findings(self) -> tuple[Finding, ...]:
        """All of them, in the order of KINDS, errors first."""
        found = []
        for code, kind in sorted(KINDS.items(), key=lambda item: item[1].severity):
            for entry in self.entries.get(code, {}).values():
                details = {**entry.details, "worst": entry.worst}
                text, right = kind.text.format(**details), kind.right.format(**details)
                found.append(Finding(kind.severity, code, entry.place, text, right, entry.count))
        return tuple(found)
