"""The model card beside an exported policy, after Mitchell et al. 2019, "Model cards for model
reporting" (arXiv 1810.03993).
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cqlray.config.schema import NO_ENVIRONMENT
from cqlray.config.secrets import printable
from cqlray.data.source import number_names
from cqlray.results.report.formatting import (
    number,
    percentages,
    repeat_command,
    setting_name,
    versions_in_words,
)
from cqlray.results.report.model_card_scores import score_lines
from cqlray.results.statistics.summary import RunRecord
from cqlray.storage.rows import MemberEntry, Swept

_ALGORITHMS = {
    "cql": "Conservative Q-Learning (CQL(H), Kumar et al. 2020, arXiv 2006.04779)",
    "sac": "offline Soft Actor-Critic: CQL without its conservative term",
    "bc": "behaviour cloning: it imitates the data, no critic chose its actions",
}


@dataclass(frozen=True)
class ExportedPolicy:
    """What the card says about the file."""

    file: str
    """Its name."""
    format: str
    """torchscript, onnx or safetensors."""
    member: int
    updates: int
    chosen_by: str | None
    """Where it was chosen as the best member: "return" or "fqe"."""
    sizes: list[int]
    """The width of each layer: observation, hidden layers, action."""
    layer_norm: bool
    action_low: list[float]
    action_high: list[float]
    code: str
    """Python that computes `actions` from `observations` with the file."""
    layout: list[str] | None
    """How the observation is flattened, in lines: none where it is a vector already; None where
    that is not known.
    """
    observation_names: list[str]
    action_names: list[str]
    checked: str
    """On which observations it was compared with the policy, and how closely they agree."""
    versions: dict[str, str]


def model_card(run: RunRecord, policy: ExportedPolicy) -> str:
    """The card, in Markdown. Texts from the data and the run are put in code spans, so that none is
    taken for markup.
    """
    entry = next(entry for entry in run.members if entry["member"] == policy.member)
    algorithm = entry["swept"].get("algorithm", "cql")
    environment = run.config["env"]["id"]
    network = " -> ".join(map(str, policy.sizes))
    lines = [
        (
            "# Policy for"
            f" {'logged data' if environment == NO_ENVIRONMENT else _code(environment)}, member"
            f" {policy.member}"
        ),
        "",
        (
            f"A deterministic policy: a multilayer perceptron ({network},"
            f" ReLU{', layer norm' * policy.layer_norm}; tanh at the end), trained offline, from"
            f" recorded data alone, by {_ALGORITHMS[algorithm]}. The file {_code(policy.file)} has"
            " the observations' normalisation and the actions' scaling inside."
        ),
    ]
    sections = {
        "Input and output": _inputs_and_outputs(policy),
        "Use": ["```python", policy.code.rstrip(), "```", *_other_ways(run, policy)],
        "Training data": _data(run),
        "Training": _training(run, policy, entry),
        "Scores": score_lines(run, policy.member, policy.updates, policy.chosen_by),
        "Limits": _limits(run),
        "Make it again": _again(run, policy),
    }
    for title, written in sections.items():
        lines += ["", f"## {title}", "", *written]
    return "\n".join(lines) + "\n"


def _code(text: Any) -> str:
    """Any text as a code span on one line."""
    return "`" + " ".join(printable(str(text)).replace("`", "'").split()) + "`"


def _inputs_and_outputs(policy: ExportedPolicy) -> Iterator[str]:
    inputs, outputs = policy.sizes[0], policy.sizes[-1]
    batch = "[n, {0}], any n" if policy.format == "onnx" else "[{0}] or [n, {0}]"
    yield f"- Observation: float32, {batch.format(inputs)}; raw, in the environment's own units."
    if policy.layout is None:
        yield (
            "  If the environment's observation is no vector, it is flattened by"
            " `gymnasium.spaces.flatten`."
        )
    elif policy.layout:
        yield "  It is the environment's observation flattened by `gymnasium.spaces.flatten`:"
        yield from (f"  - {_code(line)}" for line in policy.layout)
    yield from _named(policy.observation_names, "observation")
    yield f"- Action: float32, {batch.format(outputs)}; in the environment's units and bounds:"
    bounds = [
        f"{low:g} to {high:g}"
        for low, high in zip(policy.action_low, policy.action_high, strict=True)
    ]
    yield (
        f"  {bounds[0]}{' each' * (outputs > 1)}."
        if len(set(bounds)) == 1
        else f"  {'; '.join(bounds)}."
    )
    yield from _named(policy.action_names, "action")
    yield f"- Compared with cqlray's own policy {policy.checked}."


def _named(names: list[str], option: str) -> Iterator[str]:
    """A line with the names, where the data or the environment has some."""
    if names and names != number_names({}, option, len(names)):
        yield f"  Its numbers, in order: {', '.join(map(_code, names))}."


def _other_ways(run: RunRecord, policy: ExportedPolicy) -> Iterator[str]:
    directory = str(run.directory)
    yield ""
    yield "With cqlray and the run directory, the same policy; then the same in another format:"
    yield ""
    load = f"cqlray.load_policy({directory!r}, member={policy.member}, updates={policy.updates})"
    yield f"```python\nimport cqlray\n\nactions = {load}(observations)\n```"
    others = "FORMAT  # " + " or ".join(
        name for name in ("torchscript", "onnx", "safetensors") if name != policy.format
    )
    snapshot = f"--member {policy.member} --updates {policy.updates}"
    yield f"\n```sh\ncqlray export {shlex.quote(directory)} {snapshot} --format {others}\n```"


def _data(run: RunRecord) -> Iterator[str]:
    data = run.dataset
    if data is None:
        yield "Nothing is known of it: the run directory has no description of its data."
        return
    yield (
        f"- {data['episodes']:,} episodes, {data['transitions']:,} transitions; digest"
        f" {_code(data['digest'])}."
    )
    for tier, of_tier in data["tiers"].items():
        yield (
            f"  - {_code(tier)}: {of_tier['episodes']:,} episodes, mean return"
            f" {number(of_tier['mean_return'])}."
        )
    quantiles = data["returns"]["quantiles"]
    spread = ", ".join(f"{float(q):.0%} {number(value)}" for q, value in quantiles.items())
    yield f"- Returns of the episodes: mean {number(data['returns']['mean'])}; quantiles {spread}."
    if shares := data.get("action_coverage"):
        yield (f"- Of the bounds, actions cover {percentages(shares)}, dimension by dimension.")
    for origin in data.get("provenance") or []:
        known = [
            f"{key} {_code(origin[key])}"
            for key in ("source", "format", "author", "algorithm")
            if origin.get(key)
        ]
        yield f"- From: {', '.join(known)}."
        for line in origin.get("reading") or []:
            yield f"- Read so: {_code(line)}."
    if run.config.get("dataset") is None:
        yield (
            "- Collected by this run in the environment, with policies of a Soft Actor-Critic"
            " teacher that it trained."
        )
    yield f"- Licence: {_code(data['licence']) if data.get('licence') else 'the data says none'}."


def _training(run: RunRecord, policy: ExportedPolicy, entry: MemberEntry) -> Iterator[str]:
    options = {**run.config["cql"], **_of_baseline(run, entry)}
    swept = {key: value for key, value in entry["swept"].items() if key != "algorithm"}
    setting = f"; the run's sweep chose for it: {_code(setting_name(swept))}" if swept else ""
    updates = f"{policy.updates:,} of {options['num_updates']:,} updates"
    yield f"- {updates}; seed {entry['seed']} of run seed {run.config['seed']}{setting}."
    yield "- All options (of CQL's section of the config):"
    written = ", ".join(f"{key} {value}" for key, value in {**options, **swept}.items())
    yield from (
        "",
        "```text",
        *textwrap.wrap(" ".join(written.replace("`", "'").split()), 100),
        "```",
    )


def _of_baseline(run: RunRecord, entry: MemberEntry) -> Swept:
    """The options in which a baseline differs from the config, as config.members sets them."""
    of_algorithm = {
        "sac": {"conservative_weight": 0.0},
        "bc": {"bc_warmup_updates": run.config["cql"]["num_updates"]},
    }
    return of_algorithm.get(entry["swept"].get("algorithm", "cql"), {})


def _limits(run: RunRecord) -> Iterator[str]:
    yield (
        "- It knows what its data shows. In states and for actions that the data hardly has, its"
        " actions are guesses."
    )
    if any(row["policy"] == "student" for row in run.evaluations):
        yield (
            "- Its scores are of the environment named above, as it was then; of another version, a"
            " changed environment or"
        )
        yield (
            "  the real thing they say nothing. A 95% interval is about chance among episodes, and"
            " not about any of these."
        )
    yield (
        "- Actions stay in their bounds. Nothing else is guaranteed: it was made for research, and"
        " is not known to be safe."
    )
    yield (
        "- Observations that are not finite, or in other units or another order, give actions"
        " without meaning."
    )


def _again(run: RunRecord, policy: ExportedPolicy) -> Iterator[str]:
    yield "```sh"
    yield repeat_command(run)
    yield (
        f"cqlray export NEW_DIRECTORY --member {policy.member} --updates {policy.updates} --format"
        f" {policy.format}"
    )
    yield "```"
    yield ""
    versions = versions_in_words(run.manifest.get("versions", {}))
    yield (
        f"Trained on {_code(run.manifest.get('created'))} with {_code(versions)}; exported with"
        f" {_code(versions_in_words(policy.versions))}."
    )
