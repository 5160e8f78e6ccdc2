"""`cqlray benchmark`: how fast each part is, beside what this machine could do."""

from __future__ import annotations

from importlib import import_module

from cqlray.benchmarks.command import ABOUT
from cqlray.cli.parser import OneLine, one_of_family

_MODULES = {"data": "object_store"}  # the others have their command's name


def benchmark(words: list[str]) -> int:
    """Run `cqlray benchmark WORDS`; the exit status."""
    name = one_of_family("benchmark", words, ABOUT)
    if name is None:
        return 0
    module = import_module(f"cqlray.benchmarks.{_MODULES.get(name, name)}")
    status: int = module.main([word for word in words[1:] if word != "--debug"], OneLine)
    return status
