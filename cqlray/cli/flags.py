"""The command line of `cqlray run`, `train` and `collect`: flags over YAML over a preset, by tyro.

Every field of RunConfig is a flag: cql.batch_size is --cql.batch-size. tyro turns words into
values; flags are looked up here beforehand, so that every mistake gets one line, and the help page
is written here, so that it fits on a screen or two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import itertools
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cqlray.config import load as validate
from cqlray.config.presets import PRESETS
from cqlray.config.schema import RunConfig, SACConfig, to_dict
from cqlray.errors import UserError

_SOURCE = "command line"
_FIRST_PRESET = "pendulum"
_ABOUT = {
    "run": (
        "Train a teacher, collect a dataset, train students on it with CQL, evaluate them and write"
        " a report."
    ),
    "train": (
        "Train students with CQL on a dataset that is there already: a dataset or run directory."
    ),
    "collect": "Train a teacher and collect a dataset; no students.",
}
# What plays no part in a command: sections and fields of RunConfig.
_HIDDEN = {
    "run": ("dataset", "columns"),
    "train": ("teacher", "collection"),
    "collect": ("dataset", "columns", "num_seeds", "baselines", "cql", "sweep", "evaluation"),
}
_BOUNDS = ("action_low", "action_high")
_FLAG = re.compile(r"--?(?!(?:inf|infinity|nan)$)[A-Za-z]", re.IGNORECASE)
_ALIASES = {
    "run": {"--env": "--env.id"},
    "train": {"--env": "--env.id"},
    "collect": {
        "--env": "--env.id",
        "--tiers": "--collection.tiers",
        "--episodes": "--collection.episodes",
    },
}


@dataclass(frozen=True)
class Options:
    """What the command line holds beside the config."""

    config: Path | None = None
    """YAML file to start from; flags go over it."""
    preset: str | None = None
    """Defaults to start from; the YAML file and flags go over them.

    By default general, or pendulum for Pendulum-v1.
    """
    json: bool = False
    """Print the result as JSON."""
    debug: bool = False
    """Show the traceback of an error."""
    quiet: bool = False
    """Print no progress."""


@dataclass(frozen=True)
class _Arguments(Options, RunConfig):
    """What tyro parses: both at once."""


@dataclass(frozen=True)
class _Flag:
    path: tuple[str, ...]
    hint: Any

    @property
    def is_switch(self) -> bool:
        return self.hint is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.hint) in (tuple, dict)


def parse_config(argv: Sequence[str], command: str, look: bool = True) -> tuple[RunConfig, Options]:
    """The config and options of `cqlray COMMAND ARGV...`: a preset, below the YAML file, below the
    flags.

    Without `look` the dataset is not looked at for its environment: it need not be on this machine.

    Raises UserError with one line for each mistake, and SystemExit(0) after it printed the page for
    --help.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(help_text(command, _help_defaults(argv, command)))
        raise SystemExit(0)
    given = _split(argv, command)
    options, base = _base(given, command, look)
    parsed = _parse(given, base)
    config = RunConfig(**{f.name: getattr(parsed, f.name) for f in dataclasses.fields(RunConfig)})
    config = dataclasses.replace(
        config, env=dataclasses.replace(config.env, kwargs={**base.env.kwargs, **config.env.kwargs})
    )
    config = validate.build(to_dict(config), _SOURCE)
    from_yaml = options.config and set(validate.conflicts(config)) <= set(validate.conflicts(base))
    config = validate.check(config, str(options.config) if from_yaml else _SOURCE)
    if command == "train" and config.dataset is None:
        raise UserError("train needs --dataset DIRECTORY")
    return config, options


def help_text(command: str, defaults: RunConfig | None = None, width: int | None = None) -> str:
    """The page that `cqlray COMMAND --help` prints, for a terminal of this width; defaults are
    shown in brackets.
    """
    width = max(60, min(width or shutil.get_terminal_size().columns, 120))
    blocks = [f"usage: cqlray {command} [--config FILE] [--preset NAME] [--OPTION VALUE ...]"]
    blocks.append(
        textwrap.fill(
            f"{_ABOUT[command]} Defaults stand in brackets; presets are {', '.join(PRESETS)}.",
            width,
        )
    )
    short = {name: f"{alias}, {name}" for alias, name in _ALIASES[command].items()}
    for title, rows in _help_sections(command, defaults or PRESETS[_FIRST_PRESET]):
        named = [
            (re.sub(r"^\S+", lambda found: short.get(found[0], found[0]), flag), text)
            for flag, text in rows
        ]
        lines = [
            textwrap.fill(title, width),
            *(_help_row(flag, text, width) for flag, text in named),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


# Words to values


def _split(argv: Sequence[str], command: str) -> dict[str, list[str]]:
    """The words that follow each flag, by the flag's full name.

    Raises UserError for a word without a flag, an unknown or repeated flag, and too few or too many
    words.
    """
    given: dict[str, list[str]] = {}
    words: list[str] | None = None
    for word in argv:
        if not _FLAG.match(word):
            if words is None:
                raise UserError(f"{_SOURCE}: {word!r} belongs to no option")
            words.append(word)
            continue
        typed, equals, value = word.partition("=")
        name = _full_name(typed, command)
        if name in given:
            raise UserError(f"{_SOURCE}: {typed} stands twice")
        words = given[name] = [value] if equals else []
    for name, words in given.items():
        _check_count(name, words)
    return given


def _full_name(typed: str, command: str) -> str:
    """The flag that was typed, by its full name; raises UserError where the command has none of
    that name.
    """
    name = typed.replace("_", "-")
    name = _ALIASES[command].get(name, name)
    flags = _flags()
    if name in flags and flags[name].path[0] not in _HIDDEN[command]:
        return name
    if name in flags:
        raise UserError(f"{_SOURCE}: {typed} {_no_part(flags[name].path[0], command)}")
    known = [
        *_ALIASES[command],
        *(flag for flag, it in flags.items() if it.path[0] not in _HIDDEN[command]),
    ]
    raise UserError(f"{_SOURCE}: unknown option {typed}{_nearest_flags(name, known)}")


def _no_part(section: str, command: str) -> str:
    hint = "; cqlray train --dataset DIRECTORY trains on one" if section == "dataset" else ""
    return f"plays no part in cqlray {command}{hint}"


def _nearest_flags(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`: flags of the same name in other sections, or else the one that is
    spelt most alike.
    """
    sweeps = name.startswith("--sweep.")
    outside = [flag for flag in known if not flag.startswith("--sweep.")]
    leaf = _leaf(name)
    leaves = [_leaf(flag) for flag in outside]
    if "." in name and leaf not in leaves:
        return validate.nearest(name, known if sweeps else outside) or "; --help lists all options"
    close = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves, n=1)
    same = sorted(flag for flag in outside if _leaf(flag) in close)
    return f"; did you mean {' or '.join(same)}?" if same else "; --help lists all options"


def _leaf(flag: str) -> str:
    return flag.rpartition(".")[2].removeprefix("--")


def _check_count(name: str, words: Sequence[str]) -> None:
    flag = _flags()[name]
    if flag.is_switch and words:
        off = "" if len(flag.path) == 1 or ".no-" in name else f"; {_negated(name)} turns it off"
        raise UserError(f"{_SOURCE}: {name} takes no value, and {words[0]!r} follows it{off}")
    if flag.is_switch:
        return
    if not words:
        raise UserError(f"{_SOURCE}: {name} needs a value: {name} {_metavar(flag.hint)}")
    if typing.get_origin(flag.hint) is dict and len(words) % 2:
        raise UserError(f"{_SOURCE}: {name} takes pairs: {name} {_metavar(flag.hint)}")
    if not flag.is_list and len(words) > 1:
        raise UserError(f"{_SOURCE}: {name} takes one value, and {words[1]!r} follows it")


def _base(
    given: Mapping[str, Sequence[str]], command: str, look: bool = True
) -> tuple[Options, RunConfig]:
    """The options, and the config below the flags: the YAML file over its preset.

    Raises UserError for a mistake in the YAML file, and for a preset that is not there.
    """
    path = given.get("--config")
    preset = given.get("--preset")
    options = Options(
        config=Path(path[0]) if path else None,
        preset=preset[0] if preset else None,
        **{name: f"--{name}" in given for name in ("json", "debug", "quiet")},
    )
    values = validate.load_yaml(options.config) if options.config else {}
    if options.config:
        _check_yaml(values, str(options.config), command)
    if options.preset is not None and options.preset not in PRESETS:
        hint = (
            validate.nearest(options.preset, list(PRESETS))
            or f"; the presets are {', '.join(PRESETS)}"
        )
        raise UserError(f"{_SOURCE}: there is no preset {options.preset!r}{hint}")
    flag = given.get("--env.id")
    named = flag[0] if flag else (values.get("env") or {}).get("id")
    recorded = _recorded_env(given, values, named) if command == "train" and look else {}
    env = named or recorded.get("id", "Pendulum-v1")
    chosen = options.preset or (_FIRST_PRESET if env == "Pendulum-v1" else "general")
    merged = validate.merge(validate.merge(to_dict(PRESETS[chosen]), {"env": recorded}), values)
    return options, validate.build(merged, str(options.config or f"preset {chosen}"))


def _recorded_env(
    given: Mapping[str, Sequence[str]], values: Mapping[str, Any], named: str | None
) -> dict[str, Any]:
    """The environment that the dataset is from: training on a dataset needs no --env.

    Raises UserError where the dataset cannot be read, or names a module that the user did not name.
    """
    data = given["--dataset"][0] if "--dataset" in given else values.get("dataset")
    if data is None:
        return {}
    from cqlray.envs.recorded import recorded_environment

    # The flags are not parsed yet, which may need what is found here; a name is a name.
    typed = {
        flag.removeprefix("--columns.").replace("-", "_"): words
        for flag, words in given.items()
        if "--columns." in flag
    }
    typed_columns = {
        key: words if _flags()[f"--columns.{key}".replace("_", "-")].is_list else words[0]
        for key, words in typed.items()
    }
    columns = {
        key: value
        for key, value in {**values.get("columns", {}), **typed_columns}.items()
        if key not in _BOUNDS
    }
    typed_limit = given.get("--env.max-episode-steps", [""])[0]
    limit = (
        int(typed_limit)
        if typed_limit.isdecimal()
        else (values.get("env") or {}).get("max_episode_steps")
    )
    return recorded_environment(data, columns, limit, named)


def _check_yaml(values: Mapping[str, Any], source: str, command: str) -> None:
    config = validate.build(values, source)
    if config.dataset is not None and "dataset" in _HIDDEN[command]:
        raise UserError(f"{source}: dataset {_no_part('dataset', command)}")


def _parse(given: Mapping[str, Sequence[str]], base: RunConfig) -> _Arguments:
    """tyro's reading of the flags, over base; raises UserError with one line for each value that is
    of the wrong type.
    """
    import tyro

    fields = {f.name: getattr(base, f.name) for f in dataclasses.fields(RunConfig)}
    fields["env"] = dataclasses.replace(
        base.env, kwargs={}
    )  # tyro would make a flag of each argument that stands there
    default = _Arguments(**fields)

    def read(some: Mapping[str, Sequence[str]]) -> _Arguments | None:
        words = [word for name, values in some.items() for word in _spelt(name, values)]
        try:
            with contextlib.redirect_stderr(
                io.StringIO()
            ):  # some of its boxes come in spite of console_outputs
                return tyro.cli(_Arguments, args=words, default=default, console_outputs=False)
        except SystemExit:
            return None

    if parsed := read(given):
        return parsed
    wrong = (
        (name, values, index) for name, values in given.items() for index in range(len(values))
    )
    mistakes = {
        name: _wrong_value(name, v, index)
        for name, v, index in wrong
        if not read({name: [v[index]]})
    }
    raise UserError(
        "\n".join(mistakes.values()) or f"{_SOURCE}: cannot be read: {' '.join(map(str, given))}"
    )


def _spelt(name: str, values: Sequence[str]) -> list[str]:
    """A flag and its values as tyro spells them: true, false and null as in YAML are Python's; text
    stays as it is.
    """
    flag = _flags()[name]
    if re.search("int|float|bool", str(flag.hint)):
        values = [
            {"true": "True", "false": "False", "null": "None"}.get(value, value) for value in values
        ]
    return [name, *values] if flag.is_list or flag.is_switch else [f"{name}={values[0]}"]


def _wrong_value(name: str, words: Sequence[str], index: int) -> str:
    """The line for a word that tyro cannot read: validate's, which finds every word to be text."""
    flag = _flags()[name]
    values: Any = list(words) if flag.is_list else words[0]
    for part in reversed(flag.path):
        values = {part: values}
    try:
        validate.build(values, _SOURCE)
    except UserError as error:
        return str(error).splitlines()[index]
    return f"{_SOURCE}: {name} cannot be {words[index]!r}"


@functools.cache
def _flags() -> dict[str, _Flag]:
    """Every flag there is, by its name."""
    found: dict[str, _Flag] = {}
    for path, hint in _leaves(_Arguments):
        name = "--" + ".".join(path).replace("_", "-")
        found[name] = _Flag(path, hint)
        if hint is bool and len(path) > 1:
            found[_negated(name)] = _Flag(path, hint)
    return found


def _negated(name: str) -> str:
    section, _, leaf = name.rpartition(".")
    return f"{section}.no-{leaf}"


def _leaves(cls: type, section: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from _leaves(hints[f.name], (*section, f.name))
        else:
            yield (*section, f.name), hints[f.name]


# The help page


def _help_defaults(argv: Sequence[str], command: str) -> RunConfig | None:
    """The defaults that the rest of the command line leads to, where it is in order."""
    try:
        return _base(
            _split([word for word in argv if word not in ("-h", "--help")], command), command
        )[1]
    except UserError:
        return None


def _help_sections(
    command: str, defaults: RunConfig
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each section's title and its rows: a flag, and what it does."""
    hidden = _HIDDEN[command]
    plain = [
        f.name
        for f in dataclasses.fields(RunConfig)
        if not dataclasses.is_dataclass(getattr(defaults, f.name))
    ]
    rows = [
        (f"--{f.name} {_metavar(_flags()[f'--{f.name}'].hint)}".strip(), f.name)
        for f in dataclasses.fields(Options)
    ]
    general = [(flag, _docs(Options)[name]) for flag, name in rows]
    general += [_described(("", name), defaults) for name in plain if name not in hidden]
    yield "General", [("-h, --help", "Print this page."), *general]
    shared = [f.name for f in dataclasses.fields(SACConfig)]
    learners = [name for name in ("cql", "teacher") if name not in hidden]
    for f in dataclasses.fields(RunConfig):
        if f.name in hidden or f.name in plain:
            continue
        section = getattr(defaults, f.name)
        title = f"{f.name}: {(type(section).__doc__ or '').partition(chr(10))[0]}"
        if f.name == "sweep":
            yield title, list(_sweep_help())
            continue
        names = [
            g.name
            for g in dataclasses.fields(section)
            if f.name not in learners or g.name not in shared
        ]
        yield title, [_described((f.name, name), defaults) for name in names]
        if f.name == learners[0]:
            also = "; the same with --teacher for the teacher" if len(learners) > 1 else ""
            rows = [_described((f.name, name), defaults, learners[1:]) for name in shared]
            yield f"{f.name}: networks and optimisation{also}", rows


def _sweep_help() -> Iterator[tuple[str, str]]:
    yield (
        "--sweep.OPTION VALUE ...",
        "Values to try of any --cql option but num-updates; several sweeps multiply.",
    )
    yield "", "As in --sweep.conservative-weight 1 5 10 --num-seeds 4: 12 students."


def _described(
    path: tuple[str, str], defaults: RunConfig, others: Sequence[str] = ()
) -> tuple[str, str]:
    """A flag with its placeholder, and its docstring with its default; others are sections that
    share the option.
    """
    section, name = path
    holder: Any = getattr(defaults, section) if section else defaults
    flag = f"--{section}.{name}".replace("--.", "--").replace("_", "-")
    hint = _flags()[flag].hint
    default = _default(getattr(holder, name))
    for other in others:
        value = _default(getattr(getattr(defaults, other), name))
        default += f"; {other} {value or 'none'}" if value != default else ""
    shown = f"{section}.[no-]{name}".replace("_", "-") if hint is bool else flag.removeprefix("--")
    text = _docs(holder.__class__)[name] + (f" [{default}]" if default else "")
    return f"--{shown} {_metavar(hint)}".rstrip(), text


def _default(value: Any) -> str:
    """A default in the help page; nothing where the docstring says what happens by default."""
    if value is None or value == {}:
        return ""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).removesuffix(".0")


def _metavar(hint: Any) -> str:
    """What stands for a flag's value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        return "NAME VALUE ..."
    if origin is tuple:
        return f"{_metavar(arguments[0])} ..."
    if origin in (typing.Union, types.UnionType):
        return _metavar(arguments[0])
    if origin is typing.Literal:
        return "|".join(arguments)
    return {bool: "", int: "INT", float: "NUM", str: "TEXT", Path: "FILE"}[hint]


def _help_row(flag: str, text: str, width: int) -> str:
    column = 36
    lines = textwrap.wrap(text, width - column, break_on_hyphens=False)
    left = f"  {flag}"
    first = [f"{left:<{column}}{lines.pop(0)}"] if len(left) < column else [left]
    return "\n".join([*first, *(" " * column + line for line in lines)])


@functools.cache
def _docs(cls: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of its bases; empty where the source is not
    there.
    """
    import ast
    import inspect

    found = {f.name: "" for f in dataclasses.fields(cls)}
    for base in reversed(cls.__mro__[:-1]):
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError):
            continue
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for field, below in itertools.pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(below, ast.Expr)
            ):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found
