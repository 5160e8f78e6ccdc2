"""Groups of members that share a setting; each is a line of a table and a curve of a figure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cqlray.results.report.formatting import setting_name
from cqlray.results.statistics.resampling import Floats
from cqlray.results.statistics.summary import RunRecord, common_updates, settings, student_rows
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
    shared = common_updates(run, [entry["member"] for entry in run.members])
    found = []
    for swept, members in settings(run):
        updates = shared or common_updates(run, members)
        rows = (
            [student_rows(run, member)[updates[-1]]["returns"] for member in members]
            if updates
            else None
        )
        returns = None if rows is None else np.array(rows, dtype=np.float64)
        name = setting_name(swept) or (
            "IQM of all members, 95% interval" if len(members) > 1 else "the member, 95% interval"
        )
        found.append(Group(run, swept, members, name, returns))
    return found
