"""The command line of `cqlray run`, `train` and `collect`: flags over a YAML file over a preset.

Words become plain values like those in a YAML file. Both are merged, checked once, and laid over
the preset. A word that cannot be read as its flag's type stays text, and the check then says what
is wrong with it.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cqlray.cli.flag_table import ALIASES, HIDDEN, Flag, Options, flags, flags_of, negated
from cqlray.cli.help_page import help_text
from cqlray.config.load import Layer, check_layers, check_rules, merge, over
from cqlray.config.mistakes import nearest
from cqlray.config.presets import PRESETS, preset_for
from cqlray.config.read_yaml import load_yaml
from cqlray.config.schema import ColumnsConfig, EnvConfig, RunConfig
from cqlray.errors import UserError

_SOURCE = "command line"
# -inf and -nan are values.
_FLAG = re.compile(r"--?(?!(?:inf|infinity|nan)$)[A-Za-z]", re.IGNORECASE)
_BOOLS = {"true": True, "True": True, "false": False, "False": False}
# Flags that can decide which defaults hold, and so what the help page shows.
_CHOOSING = ("config", "preset", "dataset", "columns", "env")


def parse_config(argv: Sequence[str], command: str, look: bool = True) -> tuple[RunConfig, Options]:
    """The config and options of `cqlray COMMAND ARGV...`.

    Args:
        look: open the dataset, for the environment that it was recorded in. Without it the dataset
            may be on another machine.

    Raises:
        UserError: one line for each mistake.
        SystemExit: status 0, after the help page was printed for --help.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(help_text(command, _help_defaults(argv, command)))
        raise SystemExit(0)
    given = _split(argv, command)
    options = _options(given)
    layers = _layers(given, options)
    config = _config(layers, options, command, look)
    check_rules(config, layers)
    if command == "train" and config.dataset is None:
        raise UserError("train needs --dataset DIRECTORY")
    return config, options


def _help_defaults(argv: Sequence[str], command: str) -> RunConfig | None:
    """The defaults that the rest of the command line leads to; None where it has mistakes."""
    try:
        given = _split([word for word in argv if word not in ("-h", "--help")], command)
        given = {n: words for n, words in given.items() if flags()[n].path[0] in _CHOOSING}
        options = _options(given)
        return _config(_layers(given, options), options, command, look=True)
    except UserError:
        return None


def _options(given: Mapping[str, Sequence[str]]) -> Options:
    values = {name: given[f"--{name}"] for name in ("config", "preset") if f"--{name}" in given}
    options = Options(
        config=Path(values["config"][0]) if "config" in values else None,
        preset=values["preset"][0] if "preset" in values else None,
        **{name: f"--{name}" in given for name in ("json", "debug", "quiet")},
    )
    if options.preset is not None and options.preset not in PRESETS:
        known = f"; the presets are {', '.join(PRESETS)}"
        hint = nearest(options.preset, list(PRESETS)) or known
        raise UserError(f"{_SOURCE}: there is no preset {options.preset!r}{hint}")
    return options


def _layers(given: Mapping[str, Sequence[str]], options: Options) -> list[Layer]:
    """The YAML file's values, if there is one, and the flags' over them."""
    typed: dict[str, Any] = {}
    for name, words in given.items():
        path = flags()[name].path
        if not hasattr(options, path[0]):
            typed = merge(typed, _nested(path, _value(flags()[name], words)))
    files = [options.config] if options.config else []
    return [*(Layer(str(path), load_yaml(path)) for path in files), Layer(_SOURCE, typed)]


def _config(layers: Sequence[Layer], options: Options, command: str, look: bool) -> RunConfig:
    """The layers, over the environment that the dataset was recorded in, over a preset."""
    values = check_layers(layers)
    if values.get("dataset") is not None and "dataset" in HIDDEN[command]:
        raise UserError(f"{options.config}: dataset {_no_part('dataset', command)}")
    recorded = _recorded_env(values) if command == "train" and look else {}
    env = merge(recorded, values.get("env", {}))
    preset = options.preset or preset_for(env.get("id", EnvConfig().id))
    return over(PRESETS[preset], {**values, "env": env})


def _recorded_env(values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment that the dataset was recorded in, so that training on it needs no --env.

    Raises UserError: the dataset cannot be read, or its environment is in a module that the user
    did not name.
    """
    data, env = values.get("dataset"), values.get("env", {})
    if data is None:
        return {}
    from cqlray.envs.recorded import recorded_environment

    columns = ColumnsConfig(**values.get("columns", {}))
    recorded = recorded_environment(data, columns, env.get("max_episode_steps"), env.get("id"))
    return check_layers([Layer(f"dataset {data!r}", {"env": recorded})])["env"]  # type: ignore[no-any-return]


# Words to values


def _split(argv: Sequence[str], command: str) -> dict[str, list[str]]:
    """The words that follow each flag, by the flag's full name.

    Raises UserError: a word before any flag, an unknown or repeated flag, too few or too many words
    behind one.
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
        if (off := negated(name)) in given:
            raise UserError(f"{_SOURCE}: {name} and {off} contradict each other")
    return given


def _full_name(typed: str, command: str) -> str:
    """The full name of the flag that was typed.

    Raises UserError: the command has no such flag.
    """
    name = typed.replace("_", "-")
    name = ALIASES[command].get(name, name)
    known = flags_of(command)
    if name in known:
        return name
    if name in flags():
        raise UserError(f"{_SOURCE}: {typed} {_no_part(flags()[name].path[0], command)}")
    raise UserError(f"{_SOURCE}: unknown option {typed}{_nearest_flags(name, known)}")


def _no_part(section: str, command: str) -> str:
    hint = "; cqlray train --dataset DIRECTORY trains on one" if section == "dataset" else ""
    return f"plays no part in cqlray {command}{hint}"


def _nearest_flags(name: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, with the flags of that name in other sections, or else the flag with
    the most similar spelling.
    """
    sweeps = name.startswith("--sweep.")
    outside = [flag for flag in known if not flag.startswith("--sweep.")]
    leaf = _leaf(name)
    leaves = [_leaf(flag) for flag in outside]
    if "." in name and leaf not in leaves:
        return nearest(name, known if sweeps else outside) or "; --help lists all options"
    close = [leaf] if leaf in leaves else difflib.get_close_matches(leaf, leaves, n=1)
    same = sorted(flag for flag in outside if _leaf(flag) in close)
    return f"; did you mean {' or '.join(same)}?" if same else "; --help lists all options"


def _leaf(flag: str) -> str:
    return flag.rpartition(".")[2].removeprefix("--")


def _check_count(name: str, words: Sequence[str]) -> None:
    flag = flags()[name]
    if flag.is_switch and words:
        off = "" if len(flag.path) == 1 or flag.turns_off else f"; {negated(name)} turns it off"
        raise UserError(f"{_SOURCE}: {name} takes no value, and {words[0]!r} follows it{off}")
    if flag.is_switch:
        return
    if not words:
        raise UserError(f"{_SOURCE}: {name} needs a value: {name} {flag.placeholder}")
    if typing.get_origin(flag.hint) is dict and len(words) % 2:
        raise UserError(f"{_SOURCE}: {name} takes pairs: {name} {flag.placeholder}")
    if not flag.is_list and len(words) > 1:
        raise UserError(f"{_SOURCE}: {name} takes one value, and {words[1]!r} follows it")


def _value(flag: Flag, words: Sequence[str]) -> Any:
    """The words behind a flag, as a YAML file would give them."""
    if flag.is_switch:
        return not flag.turns_off
    if typing.get_origin(flag.hint) is dict:
        kinds = typing.get_args(flag.hint)[1]
        return {
            name: _read(word, kinds) for name, word in zip(words[::2], words[1::2], strict=True)
        }
    if flag.is_list:
        return [_read(word, typing.get_args(flag.hint)[0]) for word in words]
    return _read(words[0], flag.hint)


def _read(word: str, hint: Any) -> Any:
    """A word as a value of this type, or unchanged where it is none; true, false and null as in
    YAML.
    """
    kinds = typing.get_args(hint) or (hint,)
    if types.NoneType in kinds and word in (("None",) if str in kinds else ("None", "null")):
        return None
    if bool in kinds and word in _BOOLS:
        return _BOOLS[word]
    for kind in (int, float):
        try:
            if kind in kinds:
                return kind(word)
        except ValueError:
            continue
    return word


def _nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    for part in reversed(path):
        value = {part: value}
    return value  # type: ignore[no-any-return]
