"""The data of the report that no other file of a run folder has: explanation.json and report.json.

explanation.json has the cards. report.json has the task in words, an example pair, the answers of model and
circuit to the first prompts, the faithfulness curve, the sums of the scores, and the faithfulness of the
circuit on the prompts of the search.

If the circuit was not taken from scores (acdc, trace_back), the curve is that of EAP-IG's ranking under the
options of the run. If the circuit was not measured, only what needs no run of the model is included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.registry import METRICS, are_damages
from circuitdiscovery.reporting.folder import FORMAT, NOT_MEASURED, fingerprint
from circuitdiscovery.reporting.options import MEASURED_WITH, Options
from circuitdiscovery.reporting.progress import stage
from circuitdiscovery.task.tokenization import text_of

if TYPE_CHECKING:
    from torch import Tensor

    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.example import Example
    from circuitdiscovery.task.task import Task

PROMPTS = 20  # rows of the table
ANSWERS = 3  # the most answers that are named; greater_than has up to 98
AREAS = ("cpr", "cmd", "area", "distance")  # under the curve
_IN_WORDS = ("description", "source", "counterfactual", "asks")

Json = dict[str, Any]


def explanation_of(
    model: Model, task: Task, circuit: Circuit, options: Options, effort: str
) -> tuple[Json | None, str | None]:
    """(the cards, None), or (None, why there are none): an unusual circuit must not end the run."""
    from circuitdiscovery.explanation.explain import explain

    if effort == "none":
        return None, NOT_MEASURED
    given = options.some("metric", "ablation", "batch_size")
    with stage("explaining") as progress:
        try:
            found = explain(model, task, circuit, effort=effort, progress=progress, **given)
        except CircuitDiscoveryError as error:
            return None, str(error)
    return found.to_dict(), None


def contents_of(
    model: Model,
    task: Task,
    circuit: Circuit,
    scores: Scores | None,
    evaluation: Mapping[str, Any] | None,
    options: Options,
    effort: str,
    no_cards: str | None,
) -> Json:
    """report.json, as JSON; the same run gives the same.

    Args:
        model, task: those of the run.
        circuit: the circuit that the run found.
        scores: the scores that the circuit was taken from; None if the method returns a circuit.
        evaluation: evaluation.json, whose curve is used if it has one; None if nothing was measured.
        options: those of the run.
        effort: how much was measured: none, quick or full.
        no_cards: the reason if there are no cards.
    """
    used = task.held_out or task
    metric = str(evaluation["metric"] if evaluation is not None else options.metric or task.metric)
    asked = {"metric": metric, **options.some("ablation", "direction"), "examples": len(used)}
    report: Json = {"format": FORMAT, "circuit": fingerprint(circuit), "effort": effort}
    report |= {"asked": asked | {"part": "examples" if task.held_out is None else "held_out"}}
    report |= {
        "task": {"name": task.title} | {key: task.info.get(key) for key in _IN_WORDS},
        "example": _example(model, used.examples[0]),
    }
    if evaluation is None:
        unmeasured = {"scores": mass(scores, None), "searched": None, "prompts": None, "curve": None}
        return report | unmeasured | {"no_curve": NOT_MEASURED, "no_cards": NOT_MEASURED}
    searched, ends = _searched(model, task, circuit, evaluation, options)
    report |= {"scores": mass(scores, _damage_of_all(scores, evaluation, ends)), "searched": searched}
    curve, no_curve = _curve(model, task, circuit, scores, evaluation, options)
    report |= {"prompts": _prompts(model, used, circuit, options), "curve": curve, "no_curve": no_curve}
    return report | {"no_cards": no_cards}


# -------------------------------------------------------------------- scores


def mass(scores: Scores | None, damage: float | None) -> Json | None:
    """The sums of the positive and the negative scores, and the `damage` of removing everything
    on the search's prompts; None of scores that are no damages, which add up to nothing.
    """
    if scores is None or not are_damages(scores.info):
        return None
    values = scores.values[scores.graph.allowed].astype(float)
    sums = {
        "positive": values[values > 0].sum(),
        "negative": values[values < 0].sum(),
        "damage": damage,
    }
    return {name: None if value is None else _rounded(float(value)) for name, value in sums.items()}


def _damage_of_all(
    scores: Scores | None, evaluation: Mapping[str, Any], ends: Mapping[str, float]
) -> float | None:
    """The damage of removing every edge, by what the scores were searched with; None where that was not
    measured.
    """
    if scores is None:
        return None
    how = {"direction": evaluation["direction"], **scores.info.get("options", {})}
    metric = how.get("metric")
    if metric not in METRICS or any(how.get(name) != evaluation[name] for name in ("ablation", "direction")):
        return None
    if METRICS[metric].divergence:
        return ends.get("empty_kl")
    if metric != evaluation["metric"]:
        return None
    return (ends["full"] - ends["empty"]) * (1 if METRICS[metric].higher_is_better else -1)


def _searched(
    model: Model, task: Task, circuit: Circuit, evaluation: Mapping[str, Any], options: Options
) -> tuple[Json | None, dict[str, float]]:
    """The faithfulness of the circuit on the prompts of the search, and there F(M), F(empty) and the empty
    circuit's KL.

    The first is None if no prompts are held out, because the evaluation is then on these prompts.
    """
    from circuitdiscovery.engine.setup import Setup
    from circuitdiscovery.measure.evaluator import Evaluator

    if task.held_out is None:
        known = ("full", "empty", "empty_kl")
        return None, {name: evaluation[name]["value"] for name in known if evaluation.get(name) is not None}
    setup = Setup.of(model, task, circuit.graph, **options.some(*MEASURED_WITH))
    masks = circuit.graph.allowed, circuit.mask, np.zeros_like(circuit.mask)
    with stage("the prompts of the search") as progress:
        evaluator = Evaluator.build(setup, seed=options.seed, progress=progress)
        evaluator.measure(masks)
        full, kept, empty = map(evaluator.values, masks)
    normalized, _ = evaluator.normalized(kept, full, empty)
    estimate = (
        None
        if normalized is None
        else {
            name: None if value is None else _rounded(value) for name, value in normalized.to_dict().items()
        }
    )
    ends = {"full": full, "empty": empty, "empty_kl": evaluator.values(masks[-1], "kl")}
    return (
        {"examples": len(task), "normalized": estimate},
        {name: float(values.mean()) for name, values in ends.items()},
    )


# --------------------------------------------------------------------- curve


def _curve(
    model: Model,
    task: Task,
    circuit: Circuit,
    scores: Scores | None,
    evaluation: Mapping[str, Any],
    options: Options,
) -> tuple[Json | None, str | None]:
    """(the curve and what ranked its edges, None), or (None, why there is no curve)."""
    if evaluation["reason"] is not None:
        return None, str(evaluation["reason"])
    known = evaluation.get("curve")
    if known is not None:
        return _curve_of("scores", known), None
    try:
        if scores is not None:
            return _curve_of("scores", _measured(model, task, scores, options)), None
        return _curve_of(
            "eap_ig", _measured(model, task, _ranking(model, task, circuit, options), options)
        ), None
    except CircuitDiscoveryError as error:
        return None, str(error)


def _ranking(model: Model, task: Task, circuit: Circuit, options: Options) -> Scores:
    from circuitdiscovery.search.attribution import eap_ig

    with stage("ranking for the curve") as progress:
        how = options.some("metric", "ablation", "batch_size")
        split = {"split_qkv": circuit.graph.split_qkv, "graph": circuit.graph}
        return eap_ig(model, task, progress=progress, **split, **how)


def _measured(model: Model, task: Task, scores: Scores, options: Options) -> Json:
    from circuitdiscovery.measure.curve import curve

    with stage("curve"):
        found = curve(model, task, scores, **options.some(*MEASURED_WITH, "seed"))
    estimates = {"normalized": [each.to_dict() for each in found.normalized]}
    return {"edges": list(found.edges), **estimates} | {
        name: getattr(found, name).to_dict() for name in AREAS
    }


def _curve_of(ranking: str, found: Mapping[str, Any]) -> Json:
    return {"ranking": ranking} | {name: found[name] for name in ("edges", "normalized", *AREAS)}


# ------------------------------------------------------------------- prompts


def _example(model: Model, example: Example) -> Json:
    sides = {"clean": _tokens(model, example.clean), "corrupted": _tokens(model, example.corrupted)}
    return sides | {"positions": dict(example.positions)} | _answers(model, example)


def _prompts(model: Model, task: Task, circuit: Circuit, options: Options) -> list[Json]:
    """The first prompts with the answers of model and circuit; means are over all."""
    from circuitdiscovery.engine.metrics import clean_logits

    first = task.select(range(min(PROMPTS, len(task))))
    with stage("answers"):
        full = clean_logits(model, first).float().cpu()  # [prompts, vocabulary]
        kept = _circuit_logits(model, task, first, circuit, options).float().cpu()  # [prompts, vocabulary]
    return [
        {"text": example.text or text_of(model.tokenizer, example.clean)}
        | _answers(model, example)
        | {"full": _answered(model, example, full[row]), "circuit": _answered(model, example, kept[row])}
        | {"agree": bool(full[row].argmax() == kept[row].argmax())}
        for row, example in enumerate(first.examples)
    ]


def _circuit_logits(model: Model, task: Task, first: Task, circuit: Circuit, options: Options) -> Tensor:
    """[prompts, vocabulary]: a circuit's on the first prompts of a task, under an ablation of all of it."""
    import torch

    from circuitdiscovery.engine import distributed
    from circuitdiscovery.engine.setup import Setup, batches

    setup = Setup.of(model, task, circuit.graph, **options.some("ablation", "direction", "batch_size"))
    logits = torch.zeros(len(first), model.vocab_size, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        for batch in batches(model, circuit.graph, first, setup.batch_size, setup.held):
            logits[batch.rows] = setup.patched(batch).logits(setup.carrying(circuit.mask))
    return distributed.total(logits)


def _answered(model: Model, example: Example, logits: Tensor) -> Json:
    """The top token of [vocabulary] logits, its probability, whether it is right, the logit difference."""
    top = int(logits.argmax())
    difference = logits[list(example.correct)].mean() - logits[list(example.incorrect)].mean()
    numbers = {
        "probability": _rounded(float(logits.softmax(-1)[top])),
        "logit_diff": _rounded(float(difference)),
    }
    return {"token": _tokens(model, [top])[0], **numbers, "right": top in example.correct}


def _answers(model: Model, example: Example) -> Json:
    sides = {"correct": example.correct, "incorrect": example.incorrect}
    return {name: {"tokens": _tokens(model, ids[:ANSWERS]), "count": len(ids)} for name, ids in sides.items()}


def _tokens(model: Model, ids: Sequence[int]) -> list[str]:
    return [text_of(model.tokenizer, [token]) for token in ids]


def _rounded(value: float) -> float:
    """Six significant digits, because more would differ between machines."""
    return float(f"{value:.6g}")
