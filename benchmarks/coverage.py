"""How often the 95% intervals that are printed hold the truth, simulated.

    python benchmarks/coverage.py [--out runs/coverage] [--draws 600] [--page docs/coverage.md]

1. The truth is the figure on a large population: 2,000 prompts of a task. What each
   circuit does on each prompt is computed once.
2. A draw takes n of the prompts, with replacement, and gives their values to the code that prints the
   figures: not one run of the model. The share of the draws whose interval holds the truth is the coverage.
3. K of completeness and minimality is chosen on 16 prompts of a draw of their own, as on a
   search's; the truth is that of the chosen K.
4. Where scrubbing draws its other prompts among the measured ones, its values are not those
   of a prompt alone: it runs anew per draw.

Every part is a file in the folder, written when it is done: what was stopped goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from pages import check, show

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.suite import planted
from circuitdiscovery.engine.metrics import BoundMetric
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.explanation import explain as explanation
from circuitdiscovery.explanation import interventions
from circuitdiscovery.explanation.scrubbing import scrub as scrubs
from circuitdiscovery.explanation.scrubbing.hypothesis import load_hypothesis
from circuitdiscovery.files.disk import write_json
from circuitdiscovery.measure import criteria, evaluation
from circuitdiscovery.measure import curve as curves
from circuitdiscovery.measure.estimates import Estimate, weights
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.measure.intervals import difference, mean, mean_over_pairs, means, ratio
from circuitdiscovery.measure.normalized import normalized
from circuitdiscovery.measure.work import Family

POPULATION, SIZES, SEARCHED = 2000, (16, 64), 16
LOGIT_DIFF = BoundMetric("logit_diff", True, lambda logits, _: logits)  # for its statistics alone


class Counted:
    """Of each figure, how many intervals there were, and how many held the truth."""

    def __init__(self) -> None:
        self.of: dict[str, dict[str, list[int]]] = {}

    def note(self, figure: str, found: Estimate | None, truth: float, which: Any = "") -> None:
        """One interval of one of the figures of a kind."""
        if found is None or not found.has_interval:
            return
        assert found.low <= found <= found.high, (figure, found)
        slack = 1e-9 * (1 + abs(truth))  # roundings of a truth that is exact
        seen = self.of.setdefault(figure, {}).setdefault(str(which), [0, 0])
        seen[0] += found.low - slack <= truth <= found.high + slack
        seen[1] += 1


# ------------------------------------------------------------------ evaluation and curve


def toy() -> tuple[cd.Model, cd.Task, cd.Scores, cd.Circuit]:
    """The built-in model on IOI, and a circuit of 100 edges that 64 prompts of another seed gave."""
    model = cd.load_model("toy")
    scores = cd.eap_ig(model, cd.load_task("ioi", model, examples=64))
    task = cd.load_task("ioi", model, examples=POPULATION, seed=1)
    return model, task.held_out or task, scores, scores.top(100)


def planted_problem(name: str) -> tuple[cd.Model, cd.Task, cd.Scores, cd.Circuit]:
    """A model whose circuit is known, with its edges and ten that are random."""
    problem = planted(examples=POPULATION)[name]()
    scores = cd.eap(problem.model, problem.task.select(range(64)))
    noise = cd.random(problem.model, problem.task.select(range(4)), seed=0).top(10)
    return problem.model, problem.task, scores, problem.truth | noise


def cached(evaluator: Evaluator) -> Evaluator:
    """A evaluator that finds a circuit's key once."""
    identity, known = evaluator._identity, {}

    def found(mask: np.ndarray) -> tuple[bytes, np.ndarray]:
        key = mask.tobytes()
        if key not in known:
            known[key] = identity(mask)
        return known[key]

    evaluator._identity = found  # type: ignore[method-assign]
    return evaluator


def drawn(evaluator: Evaluator, rows: np.ndarray, draws: np.ndarray, keys: Any) -> Evaluator:
    """The evaluator as if it had measured these rows of its population."""
    known = {
        key: {kind: values[rows] for kind, values in kinds.items()} for key, kinds in evaluator._known.items()
    }
    part = replace(evaluator, count=len(rows), draws=draws, _known=known)
    part._identity = keys  # type: ignore[method-assign]
    return part


def figures(
    count: int, model: cd.Model, task: cd.Task, scores: cd.Scores, circuit: cd.Circuit
) -> dict[str, Any]:
    """The coverage of what `evaluate` prints."""
    graph = circuit.graph
    evaluator = cached(Evaluator.build(Setup.of(model, task, graph, batch_size=250)))
    plan = criteria.Sets.of(circuit, "full", 0)
    few = cached(Evaluator.build(Setup.of(model, task.select(range(SEARCHED)), graph)))
    plan = replace(plan, sets=(*plan.sets, ("greedy", criteria.greedy(few, circuit, plan.nodes))))
    curve = [Family(curves.curve_masks(scores, curves.MIB_FRACTIONS))]
    evaluator.measure_families((*curve, Family([graph.allowed]), *plan.families(), *plan.candidates()))
    out = {}
    for n in SIZES:
        counted, rng, draws = Counted(), np.random.default_rng(n), weights(n, 0)
        for _ in range(count):
            searched = drawn(
                evaluator, rng.integers(len(task), size=SEARCHED), weights(SEARCHED, 0), evaluator._identity
            )
            chosen = plan.chosen(searched, True)
            part = drawn(evaluator, rng.integers(len(task), size=n), draws, evaluator._identity)
            _compare(
                counted,
                evaluator,
                chosen,
                evaluation._evaluation(model, task, part, chosen, scores, True),
                scores,
            )
        out[str(n)] = counted.of
    return out


def _compare(
    counted: Counted, evaluator: Evaluator, plan: Any, found: cd.Evaluation, scores: cd.Scores
) -> None:
    """Note each figure of an evaluation beside the population's."""
    circuit, allowed, nothing = plan.circuit, plan.circuit.graph.allowed, np.zeros_like(plan.circuit.mask)

    def value(mask: np.ndarray, what: str = "metric") -> float:
        return float(evaluator.values(mask, what).mean())

    full, kept, empty = value(allowed), value(circuit.mask), value(nothing)
    truths = {"full": full, "circuit": kept, "empty": empty, "faithfulness": abs(full - kept)}
    truths |= {
        "normalized": (kept - empty) / (full - empty),
        "kl": value(circuit.mask, "kl"),
        "empty_kl": value(nothing, "kl"),
    }
    truths["agreement"] = value(circuit.mask, "agreement")
    for name, truth in truths.items():
        counted.note(name, getattr(found, name), truth)
    of_set = []
    for index, (knockout, (kind, removed)) in enumerate(zip(found.completeness.sets, plan.sets, strict=True)):
        of_set.append(
            abs(
                value(circuit.without(removed).mask)
                - value(cd.Circuit.full(circuit.graph).without(removed).mask)
            )
        )
        counted.note("completeness.sets", knockout.incompleteness, of_set[-1], f"{kind} {index}")
    counted.note("completeness.max", found.completeness.max, of_set[plan.worst])
    of_random = [each for each, (kind, _) in zip(of_set, plan.sets, strict=True) if kind == "random"]
    counted.note("completeness.mean", found.completeness.mean, float(np.mean(of_random)))
    for node, removed in zip(plan.nodes, plan.most, strict=True):
        rest = tuple(other for other in removed if other != node)
        truth = abs(value(circuit.without((*rest, node)).mask) - value(circuit.without(rest).mask))
        counted.note("minimality.scores", found.minimality.scores[node], truth, node)
    if found.curve is not None:
        for name, truth in _curve_truths(scores, value, full, empty).items():
            estimates = getattr(found.curve, name)
            pairs = (
                [(estimates, truth)]
                if isinstance(estimates, Estimate)
                else list(zip(estimates, truth, strict=True))
            )
            for point, (estimate, one) in enumerate(pairs):
                counted.note(f"curve.{name}", estimate, float(one), point)


def _curve_truths(
    scores: cd.Scores, value: Callable[[np.ndarray], float], full: float, empty: float
) -> dict[str, Any]:
    fractions = np.array(curves.MIB_FRACTIONS)
    ours = [scores.top(round(part * len(scores.graph))) for part in fractions]
    f, mib = (
        np.array([(value(each.mask) - empty) / (full - empty) for each in circuits])
        for circuits in (ours, curves.mib_circuits(scores))
    )
    x = np.array([len(each.pruned()) for each in ours]) / len(scores.graph)
    areas = {"area": np.trapezoid(f, x), "distance": np.trapezoid(np.abs(1 - f), x)}
    return {
        "normalized": f,
        "cpr": np.trapezoid(mib, fractions),
        "cmd": np.trapezoid(np.abs(1 - mib), fractions),
    } | areas


# ------------------------------------------------------------------ cards, path patching


def cards(count: int) -> dict[str, Any]:
    """The coverage of cards' effects and direct effects, of the effects
    that roles rest on, and of path patching's.
    """
    model, task, _, circuit = toy()
    values: dict[str, list[np.ndarray]] = {"card.direct": [], "card.effect, roles": [], "path patching": []}

    def of_means(given: np.ndarray, draws: np.ndarray, **options: bool) -> list[Estimate]:
        values["card.direct"] += [] if options else list(given)  # `mean` has options, and calls this too
        return means(given, draws, **options)

    def of_difference(a: np.ndarray, b: np.ndarray, draws: np.ndarray, **how: Any) -> Estimate:
        values["card.effect, roles"].append(a - b)
        return difference(a, b, draws, **how)

    def of_damage(self: Evaluator, old: np.ndarray, new: np.ndarray) -> Estimate:
        values["path patching"].append(old - new)
        return difference(old, new, self.draws)

    with (
        patch.object(explanation.intervals, "means", of_means),
        patch.object(interventions, "difference", of_difference),
        patch.object(Evaluator, "damage", of_damage),
    ):
        cd.explain(model, replace(task, held_out=None), circuit, batch_size=250)
        cd.path_patching(model, task, batch_size=250)
    out = {}
    for n in SIZES:
        counted, rng, draws = Counted(), np.random.default_rng(n), weights(n, 0)
        for _ in range(count):
            rows = rng.integers(len(task), size=n)
            for name, each in values.items():
                some = np.stack(each)
                for which, found in enumerate(means(some[:, rows], draws)):
                    counted.note(name, found, float(some[which].mean()), which)
        out[str(n)] = counted.of
    return out


# ------------------------------------------------------------------ scrubbing, stability


def scrubbing(count: int) -> dict[str, Any]:
    """The coverage of scrubbing's figures where prompts are drawn from the population:
    given these, the examples are independent.
    """
    model, task, _, _ = toy()
    whole, out = _scrubbed(model, task, 0), {}
    for n in SIZES:
        counted, rng = Counted(), np.random.default_rng(n)
        for _ in range(count):
            _note_scrubbing(counted, whole[:, rng.integers(len(task), size=n)], whole.mean(1))
        out[str(n)] = counted.of
    return out


def among_themselves(count: int, n: int = 64) -> dict[str, Any]:
    """The same where the measured prompts are drawn from, each draw run
    anew; the truth is the mean over all draws.
    """
    model, task, _, _ = toy()
    rng, values = np.random.default_rng(n), list[np.ndarray]()
    for seed in range(count):
        values.append(
            _scrubbed(model, task.select(np.sort(rng.choice(len(task), n, replace=False)).tolist()), seed)
        )
    counted = Counted()
    for each in values:
        _note_scrubbing(counted, each, np.mean(values, axis=(0, 2)))
    return {str(n): counted.of}


def _scrubbed(model: cd.Model, task: cd.Task, seed: int) -> np.ndarray:
    """[3, examples]: the metric scrubbed, of the model, and with everything resampled."""
    found: list[np.ndarray] = []

    def kept(
        scrubbed: np.ndarray, full: np.ndarray, resampled: np.ndarray, *_: Any, **how: Any
    ) -> tuple[None, str]:
        found.append(np.stack([scrubbed, full, resampled]))
        return None, "only the values are wanted"

    with patch.object(scrubs, "normalized", kept):
        cd.scrub(model, task, load_hypothesis("toy/ioi-position"), renamed=0, seed=seed)
    return found[0]


def _note_scrubbing(counted: Counted, values: np.ndarray, truth: np.ndarray) -> None:
    """Note what [3, n] values give beside the true means."""
    draws = weights(values.shape[1], 0)
    for name, each, true in zip(("scrubbed", "full", "resampled"), values, truth, strict=True):
        counted.note(f"scrub.{name}", mean(each, draws), float(true))
    scrubbed, full, resampled = values
    recovered, _ = normalized(scrubbed, full, resampled, draws, metric=LOGIT_DIFF, least=0.0)
    counted.note("scrub.recovered", recovered, float((truth[0] - truth[2]) / (truth[1] - truth[2])))


def renamed(count: int) -> dict[str, Any]:
    """The coverage of the mean over 20 hypotheses of the same shape, of 200 in all."""
    model, task, _, _ = toy()
    found = np.array(
        cd.scrub(model, task.select(range(64)), load_hypothesis("toy/ioi-position"), renamed=200).renamed
    )
    counted, rng, draws = Counted(), np.random.default_rng(0), weights(20, 0)
    for _ in range(count):
        counted.note("scrub.renamed_mean", mean(rng.choice(found, 20), draws), float(found.mean()))
    return {"20 hypotheses": counted.of}


def stability(count: int, runs: int = 200) -> dict[str, Any]:
    """The coverage of a mean Jaccard index over pairs of runs: of 200 runs in all."""
    model = cd.load_model("toy")
    found = cd.stability(
        lambda m, t: cd.eap(m, t).top(50), model, cd.load_task("ioi", model, examples=32), runs=runs
    )
    out = {}
    for few in (5, 10):
        counted, rng = Counted(), np.random.default_rng(few)
        for name in ("edge_jaccard", "node_jaccard"):
            table = np.zeros((runs, runs))
            table[np.triu_indices(runs, 1)] = getattr(found, f"{name}s")
            for _ in range(count):
                some = np.sort(rng.choice(runs, few, replace=False))
                pairs = np.array([table[a, b] for a, b in combinations(some, 2)])
                counted.note(f"stability.{name}", mean_over_pairs(pairs, few), float(getattr(found, name)))
        out[f"{few} runs"] = counted.of
    return out


# ------------------------------------------------------------------ values of known truth


def known(count: int) -> dict[str, Any]:
    """The coverage of figures of few prompts whose truth is known, without a model: `accuracy` of a circuit
    that gives a share of the answers, all of which the model has right and no edges another share, where that
    can be told from all; and log-normal KL, of a circuit and of the model without some nodes.
    """
    out = {}
    for n in (8, *SIZES):
        counted, rng, draws = Counted(), np.random.default_rng(n), weights(n, 0)
        for _ in range(count):
            for kept, least in SHARES:
                right, without = ((rng.random(n) < each).astype(float) for each in (kept, least))
                if difference(np.ones(n), without, draws, binary=True).low > 0:
                    found = ratio(right - without, 1 - without, draws, binary=True)
                    counted.note(NORMALIZED.format(kept, least), found, (kept - least) / (1 - least))
            logs = rng.multivariate_normal(np.zeros(2), SPREAD**2 * (0.3 * np.eye(2) + 0.7), n)
            circuit, other = np.exp(logs.T) * [[1.0], [0.5]]
            mean_kl = float(np.exp(SPREAD**2 / 2))
            counted.note("kl", mean(circuit, draws, skewed=True), mean_kl)
            by_kl = {"faithfulness": (np.zeros(n), mean_kl), "completeness.sets": (other, 0.5 * mean_kl)}
            for name, (whole, truth) in by_kl.items():
                found = difference(circuit, whole, draws, skewed=True, binary=False)
                counted.note(f"{name}, kl_divergence", found.magnitude(), truth)
        out[str(n)] = counted.of
    return out


# ------------------------------------------------------------------ the table

SHARES, SPREAD = ((0.5, 0), (0.9, 0), (0.97, 0), (0.5, 0.25), (0.9, 0.25), (0.9, 0.5)), 1.5
NORMALIZED = "normalized, accuracy, {} right, {} without edges"
KINDS = {
    "full": "mean, bootstrap-t",
    "circuit": "mean, bootstrap-t",
    "empty": "mean, bootstrap-t",
    "faithfulness": "magnitude of a mean difference",
    "normalized": "ratio, bootstrap-t",
    "kl": "mean, bootstrap-t and Cox",
    "empty_kl": "mean, bootstrap-t and Cox",
    "agreement": "Clopper-Pearson",
    "completeness.sets": "magnitude of a mean difference",
    "completeness.max": "magnitude of a mean difference, K chosen on the search's examples",
    "completeness.mean": "mean of magnitudes",
    "minimality.scores": "magnitude of a mean difference, K chosen on the search's examples",
    "curve.normalized": "ratio, bootstrap-t",
    "curve.cpr": "ratio, bootstrap-t",
    "curve.area": "ratio, bootstrap-t",
    "curve.cmd": "sum of magnitudes",
    "curve.distance": "sum of magnitudes",
    "card.effect, roles": "mean difference, bootstrap-t",
    "card.direct": "mean, bootstrap-t",
    "path patching": "mean difference, bootstrap-t",
    "scrub.full": "mean, bootstrap-t",
    "scrub.scrubbed": "mean, bootstrap-t",
    "scrub.resampled": "mean, bootstrap-t",
    "scrub.recovered": "ratio, bootstrap-t",
    "scrub.renamed_mean": "mean over hypotheses, bootstrap-t",
    "stability.edge_jaccard": "jackknife over runs",
    "stability.node_jaccard": "jackknife over runs",
    "faithfulness, kl_divergence": "magnitude of the mean, bootstrap-t and Cox",
    "completeness.sets, kl_divergence": "magnitude of a mean difference",
} | {NORMALIZED.format(*each): "ratio of differences of shares" for each in SHARES}


def table(parts: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Lines of Markdown: of several figures of a kind the mean coverage and, in brackets, the least."""
    for name, sizes in parts.items():
        yield f"### {name}"
        yield ""
        yield (
            f"| figure | interval | {' | '.join(f'n {size}' if size.isdigit() else size for size in sizes)} |"
        )
        yield f"| --- | --- |{' --- |' * len(sizes)}"
        for figure, kind in KINDS.items():
            cells = [_cell(found.get(figure)) for found in sizes.values()]
            if any(cells):
                yield f"| {figure} | {kind} | {' | '.join(cells)} |"
        yield ""


def _cell(found: dict[str, list[int]] | None) -> str:
    if not found:
        return ""
    shares = [hits / count for hits, count in found.values()]
    mean_share = sum(hits for hits, _ in found.values()) / sum(count for _, count in found.values())
    return f"{mean_share:.3f}" + (f" ({min(shares):.3f}, of {len(shares)})" if len(shares) > 1 else "")


def main() -> None:
    """Run what is missing, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument(
        "--draws",
        type=int,
        default=600,
        help="of prompts, per figure and size; a quarter of it where each runs anew",
    )
    parser.add_argument("--only", nargs="*", help="parts, by default all")
    parser.add_argument("--page", type=Path, help="write the table into this page, between its marks")
    given = parser.parse_args()
    check(given.page)
    given.out.mkdir(parents=True, exist_ok=True)
    wanted: dict[str, Callable[[], dict[str, Any]]] = {
        "toy, IOI": lambda: figures(given.draws, *toy()),
        **{
            f"planted, {name}": partial(lambda name: figures(given.draws, *planted_problem(name)), name)
            for name in PLANTED
        },
        "toy, cards and path patching": lambda: cards(given.draws),
        "toy, scrubbing": lambda: scrubbing(given.draws),
        "toy, scrubbing among themselves": lambda: among_themselves(given.draws // 4),
        "toy, renamed hypotheses": lambda: renamed(given.draws),
        "toy, stability": lambda: stability(2 * given.draws),
        "values of known truth": lambda: known(4 * given.draws),
    }
    paths = {name: given.out / f"{name.replace(', ', '-').replace(' ', '-')}.json" for name in wanted}
    for name in given.only or wanted:
        if not paths[name].exists():
            print(name, flush=True)
            write_json(paths[name], wanted[name]())
    text = "\n".join(
        table({name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.exists()})
    )
    show(text, given.page)


PLANTED = ("induction-hard",)

if __name__ == "__main__":
    main()
