"""The report in words: names of metrics, ablations and roles, the verdict on a circuit, and its warnings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from circuitdiscovery.circuit.numbers import MINUS, interval, number, percent, plural
from circuitdiscovery.registry import TABLES
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.values import repeated_in_words

METRIC_MEANING = {
    "logit_diff": (
        "the logit of the right answer minus that of the wrong one (means, where there are several)"
    ),
    "logit": "the logit of the right answer",
    "probability": "the probability of the right answers together",
    "prob_diff": "the probability of the right answers minus that of the wrong ones",
    "nll": "minus the log probability of the right answers, in nats",
    "accuracy": "how often a right answer ranks above every wrong one",
    "kl_divergence": "how far the next-token distribution is from the model's, in nats",
}
# what a head with each role does, for readers who do not know the word
ROLES = {
    "previous token": "attends to the token just before",
    "duplicate token": "detects that the token occurred before",
    "induction": "attends to what followed an earlier copy of the current token",
    "S-inhibition": "attends to the subject's second mention and acts through the heads that move the answer",
    "name mover": "copies the name that is the answer to the output",
    "negative name mover": "writes against the name that is the answer",
    "suppressor of the wrong answer": "writes against a wrong answer that stands in the prompt",
    "mover": "copies the word that is the answer to the output",
    "negative mover": "writes against the word that is the answer",
    "mover of": "carries the word at {} to another position",
}
Json = Mapping[str, Any]
NOTHING = {"noising": "every edge ablated", "denoising": "no edge restored"}
FAITHFUL, NEAR, PART, WIDE = (0.9, 1.1), (0.8, 1.2), 0.5, 0.5


def in_words(kind: str, name: str) -> str:
    """A metric or an ablation in the registry's words; your own by its name.

    >>> in_words("metric", "nll"), in_words("ablation", "zero"), in_words("metric", "mine")
    ('negative log-likelihood', 'zero', 'mine')
    """
    return (name in TABLES[kind] and TABLES[kind][name].words) or name


def meaning(role: str) -> str | None:
    """What heads with a role do; None for an unknown role.

    >>> meaning("mover of YY")
    'carries the word at YY to another position'
    """
    kind, _, place = role.partition(" of ")
    return ROLES["mover of"].format(place) if kind == "mover" and place else ROLES.get(role)


# ------------------------------------------------------------------- verdict


class Verdict(NamedTuple):
    """A word, a headline with the figure behind it, and the sentences of the paragraph."""

    word: str
    headline: str
    sentences: tuple[str, ...]


def verdict(
    evaluation: Json,
    nodes: int,
    all_nodes: int,
    contents: Json | None = None,
    *,
    what: str = "heads and MLPs",
) -> Verdict:
    """The verdict on a circuit.

    Args:
        evaluation: evaluation.json.
        nodes: the number of heads and MLPs in the circuit.
        all_nodes: the number of heads and MLPs in the model.
        contents: report.json; without it the verdict does not compare with the prompts of the search.
        what: what is counted.
    """
    word, headline = _headline(evaluation)
    size = _size(evaluation, nodes, all_nodes, what)
    if not _measured(evaluation):
        how = "repeat the run's command with --resume --measure quick to measure it"
        return Verdict(
            word,
            headline,
            (
                size,
                f"It was not measured, so it is not known how much of the behaviour it carries; {how}.",
            ),
        )
    sentences = (size, _faithfulness(evaluation), _answers(evaluation))
    sentences += (
        _completeness(evaluation),
        _minimality(evaluation),
        *_caveats(evaluation),
        *_repeated(evaluation),
        *warnings(evaluation, contents),
    )
    return Verdict(word, headline, sentences)


def _measured(evaluation: Json) -> bool:
    return evaluation.get("effort", "full") != "none"


def _headline(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    kept = evaluation["normalized"]
    edges = f"{evaluation['edges']:,} of {plural(evaluation['edges_total'], 'edge')}"
    if not _measured(evaluation):
        return "Not measured", f"how much of the behaviour these {edges} carry"
    if kept is None:
        return "Undetermined", f"whether these {edges} carry the behaviour"
    value, low, high = (kept[name] for name in ("value", "low", "high"))
    carry = "carries" if evaluation["edges"] == 1 else "carry"
    share = f"{edges} {carry} {percent(value)} of the behaviour"
    if low is None:
        return "Uncertain", f"{share}, but a single prompt is little evidence"
    if high - low > WIDE:
        return "Uncertain", f"{share}, with an interval from {percent(low)} to {percent(high)}"
    if FAITHFUL[0] <= low and high <= FAITHFUL[1]:
        return "Faithful", share
    if NEAR[0] <= value <= NEAR[1]:
        return "Mostly faithful", share
    if value > NEAR[1]:
        return "Not faithful", f"{edges} exceed the behaviour: {percent(value)} of the model's"
    if value >= PART:
        return "Partly faithful", share
    return "Not faithful", f"{edges} {carry} only {percent(value)} of the behaviour"


def _size(evaluation: Mapping[str, Any], nodes: int, all_nodes: int, what: str) -> str:
    edges, pruned, total = (evaluation[name] for name in ("edges", "edges_pruned", "edges_total"))
    text = f"The circuit has {plural(edges, 'edge')} ({percent(edges / total)} of the model's {total:,}) "
    text += f"between {nodes} of its {all_nodes} {what}"
    return (
        f"{text}."
        if pruned == edges
        else f"{text}; {pruned:,} of them lie on a path from the input to the logits."
    )


def _faithfulness(evaluation: Mapping[str, Any]) -> str:
    metric = in_words("metric", evaluation["metric"])
    full, kept, empty = (number(evaluation[name]["value"]) for name in ("full", "circuit", "empty"))
    nothing = NOTHING.get(evaluation["direction"], "nothing kept")
    ends = (
        f"the {metric} is {kept} with the circuit alone, {full} with the whole model and {empty} with "
        f"{nothing}"
    )
    off = f"|F(M) {MINUS} F(C)| = {interval(evaluation['faithfulness'])}"
    if evaluation["normalized"] is None:
        return (
            f"How much of the behaviour it keeps is undetermined, because {evaluation['reason']}: "
            f"{ends} ({off})."
        )
    kept_share = interval(evaluation["normalized"], percent)
    return (
        f"On {_prompts(evaluation)}, {ends} ({off}): the circuit goes {kept_share} of the way from "
        "nothing to the model."
    )


def _answers(evaluation: Mapping[str, Any]) -> str:
    same, kl = interval(evaluation["agreement"], percent), interval(evaluation["kl"])
    empty = evaluation.get("empty_kl")
    beside = "" if empty is None else f" (the empty circuit's {interval(empty)})"
    away = f"the KL divergence of its distribution from the model's is {kl} nats{beside}"
    return f"Its most likely next token is the model's on {same} of the prompts; {away}."


def _prompts(evaluation: Mapping[str, Any]) -> str:
    count = evaluation["examples"]
    if evaluation["part"] == "held_out":
        return plural(count, "prompt") + " that the search has not seen"
    return f"the {plural(count, 'prompt')} that it was found on (none were held out)"


def _completeness(evaluation: Mapping[str, Any]) -> str:
    most, mean = evaluation["completeness"]["max"], evaluation["completeness"]["mean"]
    span = abs(evaluation["full"]["value"] - evaluation["empty"]["value"])
    share = (
        f", {percent(mean['value'] / span)} of the span"
        if span and evaluation["normalized"] is not None
        else ""
    )
    worst = (
        "at most"
        if most["low"] is None
        else "for the set where they differ most on the prompts of the search,"
    )
    sets = evaluation["completeness"]["sets"]
    random = sum(each["kind"] == "random" for each in sets)
    average = f"on average over the {plural(random, 'random set')}" if random else "on average"
    apart = f"circuit and model differ by {interval(mean)} {average}{share}; {worst} by {interval(most)}"
    tried = plural(len(sets), "set")
    return f"When the same nodes are knocked out of both ({tried} tried), {apart} (completeness)."


def _minimality(evaluation: Mapping[str, Any]) -> str:
    scores, below = evaluation["minimality"]["scores"], evaluation["minimality"]["below"]
    others = len(evaluation["minimality"].get("unmeasured", ()))
    if not scores:
        return "It has no heads or MLPs, so minimality does not apply."
    if evaluation["minimality"]["bar"] is None:
        without = f"; without any effect: {', '.join(below)}" if below else ""
        return f"How little a node may matter is undetermined too (minimality){without}."
    nodes = (
        f"its {plural(len(scores), 'node')}"
        if not others
        else f"the {plural(len(scores), 'node')} of largest score"
    )
    rest = f"; the other {others:,} were not measured" if others else ""
    if evaluation.get("effort") == "quick":  # each node is removed from the whole circuit
        alone, tried = "alone ", ""
    else:
        alone, tried = "", " at every K that was tried"
    if not below:
        return f"All of {nodes} {alone}matter by at least 1% of the span (minimality){rest}."
    bar = evaluation["minimality"]["bar"]
    unsure = sum((scores[node]["high"] or 0) > bar for node in below)
    more = f"; {unsure} of these may matter more, as their intervals reach above it" if unsure else ""
    return (
        f"{len(below)} of {nodes} {alone}matter by less than 1% of the span{tried}: "
        f"{', '.join(below)} (minimality){more}{rest}."
    )


def _caveats(evaluation: Mapping[str, Any]) -> list[str]:
    kept, same = evaluation["normalized"], evaluation["agreement"]["value"]
    said = []
    if kept is not None and kept["low"] is not None and kept["high"] - kept["low"] > 0.2:
        said.append("The interval is wide; more examples (--examples) would narrow it.")
    if kept is not None and kept["value"] >= NEAR[0] and same < 0.8:
        said.append(
            f"The mean is kept better than the single answers: on {percent(1 - same)} of the prompts the "
            "most likely token differs from the model's."
        )
    if kept is not None and kept["value"] < PART:
        said.append(
            "The circuit is not enough to explain the behaviour; more edges, or a lower threshold, would "
            "keep more of it."
        )
    return said


# ------------------------------------------------------------------- warnings


def warnings(evaluation: Json | None, contents: Json | None = None) -> list[str]:
    """What readers must know before they trust the figures, one sentence each.

    A circuit is better than the empty one by a measure if the 95% intervals show it: the interval of its
    normalized faithfulness is above 0, that of its KL divergence below the empty circuit's. The two halves of
    the prompts, those of the search and those held out, disagree if the intervals of the normalized
    faithfulness on them do not overlap.
    """
    if evaluation is None or not _measured(evaluation):
        return []
    return [*_beside_empty(evaluation), *_beside_search(evaluation, contents)]


def _repeated(evaluation: Json) -> list[str]:
    """Which a terminal has among the lines of the evaluation."""
    prompts = evaluation.get("prompts")
    return [] if prompts is None else [f"{repeated_in_words(evaluation['examples'], prompts)}."]


def _beside_empty(evaluation: Json) -> list[str]:
    kept, kl, empty = evaluation["normalized"], evaluation["kl"], evaluation.get("empty_kl")
    if kept is None or empty is None or kept["low"] is None:
        return []
    by_metric, by_kl = kept["low"] > 0, kl["high"] < empty["low"]
    share = f"it keeps {interval(kept, percent)} of the behaviour"
    apart = f"KL divergence is {interval(kl)} nats, the empty circuit's {interval(empty)}"
    if by_metric and by_kl:
        return []
    if by_metric:
        return [f"Only one of two measures finds it better than the empty circuit: {share}, but its {apart}."]
    if by_kl:
        return [f"Only one of two measures finds it better than the empty circuit: its {apart}, but {share}."]
    return [f"It is not better than the empty circuit: {share}, and its {apart}."]


def _beside_search(evaluation: Json, contents: Json | None) -> list[str]:
    kept, searched = evaluation["normalized"], contents["searched"] if contents else None
    there = searched["normalized"] if searched else None
    if kept is None or searched is None or there is None or None in (kept["low"], there["low"]):
        return []
    if kept["low"] <= there["high"] and there["low"] <= kept["high"]:
        return []
    on_search = (
        f"on the {plural(searched['examples'], 'prompt')} of the search it keeps "
        f"{interval(there, percent)} of the behaviour"
    )
    on_others = f"on the {evaluation['examples']:,} held-out ones {interval(kept, percent)}"
    return [
        (
            f"The two halves of the prompts disagree: {on_search}, {on_others}; search on more prompts "
            "(--examples)."
        )
    ]


TOLD = ("scores", "searched", "warning")  # what the lines of `told` begin with


def told(evaluation: Json | None, contents: Json) -> list[str]:
    """What a terminal shows after the evaluation: the sums of the scores, the faithfulness on the prompts of
    the search, and the warnings.
    """
    rows, scores, searched = [], contents["scores"], contents["searched"]
    if scores is not None:
        rows.append(("scores", mass(scores)))
    if searched is not None and searched["normalized"] is not None:
        value = interval(searched["normalized"])
        rows.append(("searched", f"normalized {value} on the {searched['examples']} examples of the search"))
    rows += [("warning", sentence) for sentence in warnings(evaluation, contents)]
    return [f"{name:<13} {value}".replace(MINUS, "-") for name, value in rows]


def mass(scores: Json) -> str:
    """The sums of the scores, as `positive 66.2, negative -49.1; the damage of removing everything 4.32`."""
    text = f"positive {number(scores['positive'])}, negative {number(scores['negative'])}"
    if scores["damage"] is None:
        return text
    return f"{text}; the damage of removing everything {number(scores['damage'])}"


# -------------------------------------------------------------------- how made


def command(options: Options) -> str:
    """The command line that repeats a run. Of a path to a model, a task or an earlier circuit it has only the
    last part, and so must be run in that folder.
    """
    model, task = (_local(name) for name in (options.model, options.task))
    how = {
        name: [_local(each) for each in value] if isinstance(value, list) else value
        for name, value in options.how.items()
    }
    # the device and the batch size do not change what is found
    plain = replace(options, model=model, task=task, how=how, device=None, batch_size=None)
    return shlex.join(shlex.split(plain.resume_command(Path()))[: -len(("--out", "DIR", "--resume"))])


def _local(name: str) -> str:
    path = Path(name)
    return f"./{path.name}" if path.is_absolute() else name


def without_paths(text: str, options: Options) -> str:
    """A message with only the last part of the paths of the model and the task, because a page must not
    reveal where it was made.
    """
    for name in (options.model, options.task):
        text = text.replace(name, Path(name).name)
    return text
