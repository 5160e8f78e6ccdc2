"""Groups of members that share a setting; each is a line of a table and a curve of a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cqlray.results.report.formatting import setting_name
from cqlray.results.statistics.resampling import Floats
from cqlray.results.statistics.summary import RunRecord, student_rows, tested_settings
from cqlray.storage.rows import Swept


@dataclass(frozen=True)
class Group:
    """Members of a run that differ in nothing but their seed."""

    run: RunRecord
    swept: Swept
    members: list[int]
    name: str
    returns: Floats | None
    """[members, episodes]: at the last test that all members of the run had. Where there is none,
    at the last that all members of the group had; None where there is none of those either.
    """


def groups_of(run: RunRecord) -> list[Group]:
    """A group for each setting of the sweep, in the members' order; without a sweep, one group of
    all members.
    """
    found = []
    for swept, members, updates in tested_settings(run):
        returns = None
        if updates:
            rows = [student_rows(run, member)[updates[-1]]["returns"] for member in members]
            returns = np.array(rows, dtype=np.float64)
        name = setting_name(swept) or (
            "IQM of all members, 95% interval" if len(members) > 1 else "the member, 95% interval"
        )
        found.append(Group(run, swept, members, name, returns))
    return found
