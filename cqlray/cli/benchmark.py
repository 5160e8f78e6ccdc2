"""`cqlray benchmark`: how fast each part is, beside what this machine could do."""

from __future__ import annotations

from importlib import import_module

from cqlray.cli.parser import OneLine, family_page
from cqlray.errors import UserError

_MODULES = {
    "learner": "learner",
    "members": "members",
    "rollout": "rollout",
    "data": "object_store",
    "actor": "actor",
    "peers": "peers",
}
_ABOUT = {
    "learner": "Updates per second beside the device's limit.",
    "members": "Many members, a learner a core, beside one on all cores.",
    "rollout": "Environment steps per second of rollout workers.",
    "data": "Shards and columns on their way to a learner.",
    "actor": "The learner in its Ray actor beside its bare loop.",
    "peers": "Updates per second beside d3rlpy's CQL, in turns.",
}


def benchmark(words: list[str]) -> int:
    """Run `cqlray benchmark WORDS`; the exit status."""
    if words[:1] in (["-h"], ["--help"]):
        print(family_page("benchmark", _ABOUT))
        return 0
    if not words or words[0] not in _MODULES:
        typed = f" {words[0]}" if words else ""
        raise UserError(f"benchmark{typed}: the commands are benchmark {', '.join(_MODULES)}")
    module = import_module(f"cqlray.benchmarks.{_MODULES[words[0]]}")
    status: int = module.main([word for word in words[1:] if word != "--debug"], OneLine)
    return status
