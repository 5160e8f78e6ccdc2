"""cqlray: offline reinforcement learning with Conservative Q-Learning, distributed with Ray.

    import cqlray

    result = cqlray.run(cqlray.RunConfig(seed=1))
    policy = cqlray.load_policy(result.run_dir, member="best")
    action = policy(observation)

Names are loaded when first used; importing cqlray loads neither ray nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cqlray.api.datasets import Dataset, load_dataset
    from cqlray.api.results import Report, report, video
    from cqlray.api.runs import RunResult, collect, load_run, resume, run
    from cqlray.config.presets import PRESETS
    from cqlray.config.schema import (
        CollectionConfig,
        ColumnsConfig,
        CQLConfig,
        EnvConfig,
        EvaluationConfig,
        ResourcesConfig,
        RunConfig,
        SweepConfig,
        TeacherConfig,
    )
    from cqlray.errors import EnvironmentFailure, Interrupted, UserError
    from cqlray.results.export import Exported, export
    from cqlray.results.policies import LoadedPolicy, load_policy

_HOMES = {
    "cqlray.api.results": ("Report", "report", "video"),
    "cqlray.api.runs": ("RunResult", "collect", "load_run", "resume", "run"),
    "cqlray.config.presets": ("PRESETS",),
    "cqlray.config.schema": (
        "CQLConfig",
        "CollectionConfig",
        "ColumnsConfig",
        "EnvConfig",
        "EvaluationConfig",
        "ResourcesConfig",
        "RunConfig",
        "SweepConfig",
        "TeacherConfig",
    ),
    "cqlray.api.datasets": ("Dataset", "load_dataset"),
    "cqlray.errors": ("EnvironmentFailure", "Interrupted", "UserError"),
    "cqlray.results.export": ("Exported", "export"),
    "cqlray.results.policies": ("LoadedPolicy", "load_policy"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "PRESETS",
    "CQLConfig",
    "CollectionConfig",
    "ColumnsConfig",
    "Dataset",
    "EnvConfig",
    "EnvironmentFailure",
    "EvaluationConfig",
    "Exported",
    "Interrupted",
    "LoadedPolicy",
    "Report",
    "ResourcesConfig",
    "RunConfig",
    "RunResult",
    "SweepConfig",
    "TeacherConfig",
    "UserError",
    "collect",
    "export",
    "load_dataset",
    "load_policy",
    "load_run",
    "report",
    "resume",
    "run",
    "video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cqlray' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
