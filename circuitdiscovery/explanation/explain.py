"""What the nodes of a circuit do: a card for each node, with its role if the evidence supports one.

1. *effect*: the damage of ablating only this node in the full model, all its out-edges at once, with a
   bootstrap interval.
2. *direct*: direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer
   Circuits"; Wang et al. 2022, arXiv 2211.00593, section 3.1): what the node writes at END, through the final
   norm with its scale frozen at the clean run, projected onto the mean unembedding of the correct answers
   minus that of the incorrect ones. Over all sources and output biases it adds up to the logit difference.
3. *attention*: what a head attends to (attention.py), and the scores that distinguish kinds of heads
   (head_scores.py).
4. *lens*: what the node writes at END, through the same frozen norm and the unembedding (the logit lens,
   nostalgebraist 2020, of one node): the tokens that it promotes and suppresses most.
5. *roles*: the roles that the evidence supports (roles.py).

2, 3 and 4 come from plain runs of all examples. Interventions (1, and those that the roles need) also use all
examples; with `effort="quick"` they use 24 examples and the 30 nodes of largest score, with wider intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation, name_of, on_demand
from circuitdiscovery.engine.metrics import Metric, bind
from circuitdiscovery.engine.setup import Progress
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.explanation.attention import (
    Observed,
    Sights,
    named,
    observe,
    one_names,
    shown,
    standing,
)
from circuitdiscovery.explanation.cards import Card, Explanation, Lens, Pattern
from circuitdiscovery.explanation.head_scores import PERIOD, SEQUENCES, TOP, CopyScores, PatternScores, among
from circuitdiscovery.explanation.heads import S2, Look, Setting, answer_position, word_positions
from circuitdiscovery.explanation.interventions import SEED, Trials
from circuitdiscovery.explanation.json_values import Edges
from circuitdiscovery.explanation.roles import find_roles
from circuitdiscovery.graph.nodes import head_of, no_node, parsed
from circuitdiscovery.measure import intervals
from circuitdiscovery.measure.estimates import weights
from circuitdiscovery.measure.work import Work
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import parameters
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

EFFORTS = ("full", "quick")
PROMPTS = 3  # prompts shown whole: enough to see what changes from one to the next
EDGES = 10  # edges of a node on its card, in each direction
SEEN = 2.0  # the cost of a plain run that keeps sources and attention, in plain runs
ASKED = 0.4  # the share of heads that are expected to be tested with other words
QUICK_NODES = 30  # cards: more than anybody reads
QUICK_EXAMPLES = (
    24  # for interventions, always the same: with 64 examples, intervals become 1.6 times as wide
)
EACH = 16  # every so many tokens are looked at before all are, to see that an answer is not among the highest
UNITS = 100  # of progress in a plain run of the examples
QUICK_TOKENS = 256  # for copy scores: a share is then accurate to 0.03


@guarded
@torch.no_grad()
def explain(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    prompts: int = PROMPTS,
    effort: str = "full",
    nodes: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Collect the evidence of what the nodes of a circuit do: a card for each head and MLP, or for some.

    Args:
        model: the model that the circuit is of.
        task: its held-out examples are used if it has some, else its examples.
        circuit: its nodes get cards. Its edges determine only the lists on cards and where heads are read.
        metric: measures the effects: a name, a `Metric` or a function of (logits, task); by default the
            task's own.
        ablation: what an ablated node's edges carry: a name, or your own (an object with `rows`).
        prompts: for how many of the first prompts attention and lens are kept whole, at least 1.
        effort: `full` runs every intervention on every example. `quick` runs them on 24 examples, makes cards
            for the 30 nodes of largest score, and takes copy scores on at most 256 tokens.
        nodes: the heads and MLPs that get a card, for any effort; the others are in `unmeasured`.
        batch_size: examples in one forward; by default as many as bounded memory holds.
        progress: called with (done, expected) in hundredths of a plain run of the examples; True: a bar.

    Returns:
        The cards by node, the roles, and how they were measured. The cards are in index order, from the first
        layer to the last; what is printed of them begins with the node of largest effect.

    Raises:
        CircuitDiscoveryError: a circuit of another model; an unknown metric, ablation or effort; fewer than
            one prompt; a node that is not a head or MLP of the circuit.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.explanation.explain import explain
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model)
    >>> explain(model, task, cd.Circuit.from_nodes(model.graph, ["a2.h0", "a1.h3"])).roles["name mover"]
    ('a2.h0',)
    """
    circuit.check_model(model)
    if effort not in EFFORTS:
        raise unknown("effort", effort, EFFORTS)
    if type(prompts) is not int or prompts < 1:
        raise CircuitDiscoveryError(f"prompts must be a whole number of at least 1, not {prompts!r}")
    used, inner = (
        task.held_out or task,
        tuple(node for node in circuit.graph.inner if node in circuit.nodes),
    )
    chosen = _chosen(circuit, inner, nodes, effort)
    rows = _rows(len(used), effort)
    seen, some = (
        _Seen(model, used, circuit, chosen, prompts, QUICK_TOKENS if effort == "quick" else None),
        used.select(rows),
    )
    bound, carried = bind(metric or used.metric, model, some, plain=False), on_demand(model, some, ablation)
    work = Work(
        progress, 2.0 * parameters(model) * sum(len(example.clean) for example in used.examples) / UNITS
    )
    cards = (
        _cards(Trials(model, circuit.graph, used, rows, bound, carried, batch_size, work), circuit, seen)
        if chosen
        else {}
    )
    return Explanation(
        model=model.name,
        task=task.name,
        part="examples" if task.held_out is None else "held_out",
        examples=len(used),
        metric=bound.name,
        ablation=name_of(ablation),
        effort=effort,
        intervened=len(rows),
        unmeasured=tuple(node for node in inner if node not in chosen),
        cards=cards,
        mean_over=getattr(carried, "mean_over", None),
    )


def _chosen(
    circuit: Circuit, inner: Sequence[str], nodes: Sequence[str] | None, effort: str
) -> tuple[str, ...]:
    """The heads and MLPs of the circuit that get cards, in index order."""
    if nodes is None:
        return (
            circuit.strongest(QUICK_NODES) if effort == "quick" and len(inner) > QUICK_NODES else tuple(inner)
        )
    wrong = next((node for node in nodes if node not in inner), None)
    if wrong is not None:
        raise no_node(wrong, inner, "head or MLP", "heads and MLPs of this circuit")
    return tuple(node for node in inner if node in nodes)


def _rows(count: int, effort: str) -> tuple[int, ...]:
    """The examples that interventions run on, in order: all, or a fixed draw."""
    if effort == "full" or count <= QUICK_EXAMPLES:
        return tuple(range(count))
    return tuple(sorted(np.random.default_rng(0).choice(count, QUICK_EXAMPLES, replace=False).tolist()))


def _cards(trials: Trials, circuit: Circuit, seen: _Seen) -> dict[str, Card]:
    model, task, graph, nodes, heads, work = (
        trials.model,
        trials.task,
        circuit.graph,
        seen.nodes,
        seen.heads,
        trials.work,
    )
    names = word_positions(task)
    tokens = sum(len(example.clean) for example in task.examples)
    forward = 2.0 * parameters(model)
    looking = SEEN * forward * tokens + 2.0 * model.unembedding_size * (
        len(seen.watched) * len(task) * 2 / EACH + len(heads) * seen.copying.total
    )
    random = forward * SEQUENCES * (2 * PERIOD + 1) if heads else 0.0
    work.ahead = looking + random + trials.ablating(nodes) + ASKED * trials.asking(heads, len(names))
    work.report()
    work.plan(looking)
    for observed in observe(model, task, trials.batch_size):
        seen.add(observed)
        work.did(looking * len(observed.batch) / len(task))
    work.plan(random)
    patterns = PatternScores({}, None)
    if heads:
        patterns = PatternScores.measure(
            model, task, batch_size=trials.batch_size, progress=lambda share: work.did(random * share)
        )
    of_direct = (
        intervals.means(np.stack(list(seen.direct.values())), weights(len(task), SEED)) if seen.direct else []
    )
    direct = dict(zip(seen.direct, of_direct, strict=True))
    scores = {head: patterns.of(head) | seen.copying.of(head) for head in heads}
    looks = [
        Look(head, direct[head], seen.brought(head), scores.get(head, {}), *seen.shares(head))
        for head in seen.watched
    ]
    setting = Setting(
        logit_diff=float(seen.logit_diff.mean()),
        stands=float(seen.stands[0].mean()),
        wrong_stands=float(seen.stands[1].mean()),
        answer=answer_position(task),
        names=names,
        even=patterns.even,
    )
    ablated, roles = find_roles(looks, nodes, seen.sights, setting, trials)
    work.ahead = 0.0
    work.report()
    return {
        node: Card(
            node=node,
            kind="head" if node in heads else "mlp",
            roles={role.name: role.evidence for role in roles.get(node, ())},
            effect=ablated.nodes[node],
            direct=direct[node],
            attention=seen.sights.pairs(node) if node in heads else {},
            attended=seen.sights.attended(node) if node in heads else (),
            scores=scores.get(node, {}),
            patterns=seen.patterns(node),
            lens=seen.lens(node),
            in_edges=_edges(circuit, columns=[node in graph.reader_nodes(name) for name in graph.receivers]),
            out_edges=_edges(circuit, rows=[name == node for name in graph.sources]),
        )
        for node in nodes
    }


def _edges(
    circuit: Circuit, *, rows: Sequence[bool] | None = None, columns: Sequence[bool] | None = None
) -> Edges:
    """The circuit's strongest edges out of the sources in `rows`, or into the receivers in `columns`."""
    mask = circuit.mask.copy()
    mask &= np.array(rows)[:, None] if rows is not None else np.array(columns)
    found = [(name, circuit.score(name)) for name in circuit.graph.names(mask)]
    return tuple(sorted(found, key=lambda edge: -abs(edge[1]) if edge[1] is not None else 1.0)[:EDGES])


# ------------------------------------------------------------------ one pass over the examples


def _direction(model: Model, example: Example) -> Tensor:
    """[D]: the direction of the logit difference in the normalised stream."""
    correct, incorrect = (model.logit_directions(answers) for answers in (example.correct, example.incorrect))
    return correct.mean(0) - incorrect.mean(0) if len(incorrect) else correct.mean(0)


class _Seen:
    """What plain runs on a task's clean prompts show of some nodes."""

    def __init__(
        self,
        model: Model,
        task: Task,
        circuit: Circuit,
        nodes: Sequence[str],
        prompts: int,
        tokens: int | None,
    ) -> None:
        heads, count = tuple(node for node in nodes if parsed(node).kind == "head"), len(task)
        self.model, self.task, self.nodes, self.heads = model, task, tuple(nodes), heads
        self._prompts, self._names, self._some = prompts, one_names(task), model.W_U[::EACH].contiguous()
        # S-inhibition acts through heads that move the answer, whether the circuit has them or not
        everyone = heads and S2 in self._names
        self.watched = (
            tuple(n for n in model.graph.sources if parsed(n).kind == "head") if everyone else heads
        )
        self.sights, self.copying = (
            Sights(model, task, circuit, heads),
            CopyScores(model, task, heads, tokens),
        )
        self.logit_diff = np.zeros(count)  # [examples]
        # [examples] each: what a node writes, and the part that a head finds at END itself
        self.direct = {node: np.zeros(count) for node in dict.fromkeys((*nodes, *self.watched))}
        self.of_itself = {head: np.zeros(count) for head in self.watched}
        # [2, examples]: whether a right, a wrong answer stands before END
        self.stands = np.array(
            [[bool(standing(e, e.correct)), bool(standing(e, e.incorrect))] for e in task.examples]
        ).T
        # [2, 2, examples]: whether this right or wrong answer is among the highest, the lowest
        self._near = {head: np.zeros((2, 2, count), dtype=bool) for head in self.watched}
        self._patterns: dict[str, dict[int, Pattern]] = {node: {} for node in nodes}  # by row
        self._lens: dict[str, dict[int, Lens]] = {node: {} for node in nodes}

    def add(self, seen: Observed) -> None:
        """Add one more batch."""
        rows = seen.batch.rows.tolist()
        examples = [self.task.examples[row] for row in rows]
        direction = torch.stack([_direction(self.model, example) for example in examples])  # [N, D]
        self.logit_diff[rows] = _dot(self.model.final_norm(seen.stream), direction)
        # right and wrong ones, by index in the batch
        answers = [
            {i: found for i, e in enumerate(examples) if (found := standing(e, getattr(e, side)))}
            for side in ("correct", "incorrect")
        ]
        shown_whole = [i for i, row in enumerate(rows) if row < self._prompts]
        for node in self.direct:
            written = seen.written(self.model.graph.source_index[node])  # [N, D]
            self.direct[node][rows] = _dot(written, direction)
            if node in self._near:
                self.of_itself[node][rows] = _dot(seen.written_of_itself(node), direction)
                for near, found in zip(self._near[node], answers, strict=True):
                    near[:, [rows[i] for i in found]] = self._among(written[list(found)], found)
            for i in shown_whole if node in self._lens else ():
                self._lens[node][rows[i]] = self._read(examples[i], self._logits(written[i]))
                if node in self._near:
                    self._patterns[node][rows[i]] = self._pattern(
                        examples[i], seen.attention[head_of(node)][i]
                    )
        self.sights.add(seen)
        self.copying.add(seen)

    def _logits(self, written: Tensor) -> Tensor:
        """[N, vocabulary] float32."""
        return self.model.logit_terms(written).float()

    def _among(self, written: Tensor, answers: Mapping[int, Sequence[int]]) -> np.ndarray:
        """[2, n] bool: whether one of its answers is among the highest, lowest tokens of each of [n, D].

        Most are not, which some of the tokens show: more than TOP of them are higher, and lower, than it.
        """
        near = torch.zeros(2, len(answers), dtype=torch.bool, device=written.device)
        if answers:
            most = max(map(len, answers.values()))
            padded = [[*found, *[found[0]] * (most - len(found))] for found in answers.values()]
            tokens = torch.tensor(padded, device=written.device)
            found, some = (self.model.W_U[tokens] @ written[:, :, None])[..., 0], written @ self._some.T
            higher, lower = some > found.amax(1, keepdim=True), some < found.amin(1, keepdim=True)
            rows = torch.minimum(higher.sum(1), lower.sum(1)) <= TOP
            near[:, rows] = torch.stack(among(self._logits(written[rows]), tokens[rows]))
        return near.cpu().numpy()

    def brought(self, head: str) -> float:
        """The share of a head's direct effect that comes from tokens before END; both parts by mean size."""
        here = self.of_itself[head]
        sizes = [float(np.abs(part).mean()) for part in (self.direct[head] - here, here)]
        return sizes[0] / sum(sizes) if any(sizes) else 0.0

    def shares(self, head: str) -> tuple[float, float, float]:
        """Shares of the examples with the answer in the prompt: where it is among the highest tokens that a
        head writes, and where it is among the lowest; and where a wrong answer in the prompt is among these.
        """
        near = [each[:, there] for each, there in zip(self._near[head], self.stands, strict=True)]
        right, wrong = ([float(side.mean()) if side.size else 0.0 for side in each] for each in near)
        return right[0], right[1], wrong[1]

    def patterns(self, node: str) -> tuple[Pattern, ...]:
        """Those of the first prompts, in order."""
        return tuple(each for _, each in sorted(self._patterns[node].items()))

    def lens(self, node: str) -> tuple[Lens, ...]:
        """Those of the first prompts, in order."""
        return tuple(each for _, each in sorted(self._lens[node].items()))

    def _text(self, example: Example) -> str:
        return example.text or shown(self.model, example.clean)

    def _read(self, example: Example, logits: Tensor) -> Lens:
        """The lens of what a node writes, from its [vocabulary] logits."""
        best, worst = (logits.topk(min(TOP, len(logits)), largest=largest) for largest in (True, False))
        promoted, suppressed = (
            tuple(
                (shown(self.model, [token]), value)
                for value, token in zip(side.values.tolist(), side.indices.tolist(), strict=True)
            )
            for side in (best, worst)
        )
        return Lens(self._text(example), self.sights.end, promoted, suppressed)

    def _pattern(self, example: Example, weights: Tensor) -> Pattern:
        weights = weights[: len(example.clean), : len(example.clean)]  # without pads
        tokens = tuple(shown(self.model, [token]) for token in example.clean)
        return Pattern(self._text(example), tokens, weights.cpu().numpy(), named(example, self._names))


def _dot(written: Tensor, direction: Tensor) -> np.ndarray:
    """[N, D] each -> [N]."""
    return (written * direction).sum(-1).double().cpu().numpy()
