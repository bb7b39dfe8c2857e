"""What the nodes of a circuit do: a card for each, with its role where the evidence supports one.

1. *effect*: the damage of ablating the node alone in the full model, all its out-edges at once, with a bootstrap interval.
2. *direct*: direct logit attribution (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Wang et al. 2022,
   arXiv 2211.00593, section 3.1): what the node writes at END, through the final norm with its scale frozen at the clean run, onto
   the mean of the correct answers' unembeddings less that of the incorrect ones'. All sources and output biases add up to the
   logit difference.
3. *attention*: where a head looks (attention.py), and the scores that tell kinds of heads apart (headscores.py).
4. *lens*: what the node writes at END, through the same frozen norm and the unembedding (nostalgebraist 2020, "logit lens", of one
   node): the tokens that it promotes and suppresses most.
5. *role*: what the evidence supports (roles.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.ablation import Ablation, name_of
from circuitdiscovery.attention import Observed, Sights, head_of, observe, shown
from circuitdiscovery.cards import Card, Edges, Explanation, Lens, Pattern
from circuitdiscovery.circuit import Circuit
from circuitdiscovery.encoder import Example
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.evaluation import Bench
from circuitdiscovery.headscores import TOP, CopyScores, PatternScores
from circuitdiscovery.interventions import Trials
from circuitdiscovery.metrics import Metric
from circuitdiscovery.model import Model
from circuitdiscovery.patching import Progress
from circuitdiscovery.roles import Head, Setting, answer_position, find_roles, standing, word_positions
from circuitdiscovery.task import Task
from circuitdiscovery.taskfile import END

PROMPTS = 3  # that are shown whole: enough to see what changes from one to the next
EDGES = 10  # of a node, each way


@torch.no_grad()
def explain(
    model: Model,
    task: Task,
    circuit: Circuit,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    prompts: int = PROMPTS,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """A card for every head and MLP that writes an edge of a circuit.

    Args:
        model: the model it is a circuit of.
        task: its held-out examples where there are some, else its examples.
        circuit: whose nodes; of its edges only the cards' lists, and where a head is read, depend.
        metric: what effects are measured in; by default the task's own.
        ablation: what an ablated node's edges carry.
        prompts: whose attention and lens are shown whole, the first ones.
        batch_size: examples in one forward.
        progress: called with (interventions run, interventions expected).

    Raises:
        CircuitDiscoveryError: a circuit of another model; an unknown metric or ablation; no prompts.

    >>> import circuitdiscovery as cd
    >>> from circuitdiscovery.explanation import explain
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("ioi", model)
    >>> explain(model, task, cd.Circuit.from_nodes(model.graph, ["a2.h0", "a1.h3"])).roles["name mover"]
    ('a2.h0',)
    """
    circuit.check_model(model)
    if type(prompts) is not int or prompts < 1:
        raise CircuitDiscoveryError(f"prompts must be a whole number of at least 1, not {prompts!r}")
    used = task.held_out or task
    spec = metric or used.metric
    bench = Bench.build(model, used, circuit.graph, ablation, spec, "noising", batch_size, 0)
    nodes = [node for node in circuit.graph.sources[1:] if node in circuit.nodes]
    expected = len(nodes) * (3 + 3 * len(word_positions(used)))  # at most about so many: itself, its edges, other words
    trials = Trials(model, used, bench, spec, batch_size, _counter(progress, expected))
    cards = _cards(trials, circuit, nodes, prompts)
    part = "examples" if task.held_out is None else "held_out"
    return Explanation(model.name, task.name, part, len(used), bench.metric.name, name_of(ablation), cards)


def _cards(trials: Trials, circuit: Circuit, nodes: Sequence[str], prompts: int) -> dict[str, Card]:
    model, task, bench, graph = trials.model, trials.task, trials.bench, circuit.graph
    effects = {node: trials.node(node) for node in nodes}
    seen = _Seen(model, task, circuit, nodes, prompts)
    for observed in observe(model, task, trials.batch_size) if nodes else ():
        seen.add(observed)
    direct = {node: bench.mean(seen.direct[node]) for node in nodes}
    heads = [node for node in nodes if node[0] == "a"]
    patterns = PatternScores.measure(model, task) if heads else PatternScores({}, None)
    scores = {head: patterns.of(head) | seen.copying.of(head) for head in heads}
    known = [Head(head, effects[head], direct[head], scores[head], *seen.shares(head)) for head in heads]
    roles = find_roles(known, seen.sights, _setting(task, bench, seen, patterns.even), trials) if heads else {}
    return {
        node: Card(
            node=node,
            kind="head" if node in heads else "mlp",
            role=roles[node][0] if node in roles else None,
            evidence=roles[node][1] if node in roles else (),
            effect=effects[node],
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


def _setting(task: Task, bench: Bench, seen: _Seen, even: float | None) -> Setting:
    full, empty = (bench.values(mask).mean() for mask in (bench.graph.allowed, np.zeros_like(bench.graph.allowed)))
    return Setting(
        span=abs(float(full - empty)),
        logit_diff=float(seen.logit_diff.mean()),
        stands=sum(bool(standing(example)) for example in task.examples) / len(task),
        answer=answer_position(task),
        names=word_positions(task),
        even=even,
    )


def _counter(progress: Progress | None, expected: int) -> Callable[[], None]:
    """What counts interventions; how many there will be is known only roughly."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(done, expected))

    return count


def _edges(circuit: Circuit, *, rows: Sequence[bool] | None = None, columns: Sequence[bool] | None = None) -> Edges:
    """The circuit's strongest edges out of the sources in `rows`, or into the receivers in `columns`."""
    mask = circuit.mask.copy()
    mask &= np.array(rows)[:, None] if rows is not None else np.array(columns)
    found = [(name, circuit.score(name)) for name in circuit.graph.names(mask)]
    return tuple(sorted(found, key=lambda edge: -abs(edge[1]) if edge[1] is not None else 1.0)[:EDGES])


# ------------------------------------------------------------------ one pass over the examples


def _direction(model: Model, example: Example) -> Tensor:
    """[D]: what of the normalised stream is the logit difference."""
    correct, incorrect = (model.W_U[list(answers)] for answers in (example.correct, example.incorrect))
    return correct.mean(0) - incorrect.mean(0) if len(incorrect) else correct.mean(0)


class _Seen:
    """What is seen of some nodes in plain runs on a task's clean prompts."""

    def __init__(self, model: Model, task: Task, circuit: Circuit, nodes: Sequence[str], prompts: int) -> None:
        heads, count = [node for node in nodes if node[0] == "a"], len(task)
        self._model, self._task, self._prompts = model, task, prompts
        self.sights, self.copying = Sights(model, task, circuit, heads), CopyScores(model, task, heads)
        self.logit_diff = np.zeros(count)  # [examples]
        self.direct = {node: np.zeros(count) for node in nodes}  # [examples] each
        self._near = {head: np.zeros((2, count), dtype=bool) for head in heads}  # [2, examples]: an answer among the highest, the lowest
        self._patterns: dict[str, dict[int, Pattern]] = {node: {} for node in nodes}  # by row
        self._lens: dict[str, dict[int, Lens]] = {node: {} for node in nodes}

    def add(self, seen: Observed) -> None:
        """Look at one more batch."""
        rows = seen.batch.rows.tolist()
        examples = [self._task.examples[row] for row in rows]
        direction = torch.stack([_direction(self._model, example) for example in examples])  # [N, D]
        self.logit_diff[rows] = _dot(self._model.final_norm(seen.stream), direction)
        for node in self.direct:
            written = seen.written(self._model.graph.source_index[node])  # [N, D]
            self.direct[node][rows] = _dot(written, direction)
            logits = (written @ self._model.W_U.T).float()  # [N, vocabulary]
            for sign in (0, 1) if node in self._near else ():
                near = logits.topk(min(TOP, logits.shape[1]), largest=sign == 0).indices.tolist()
                self._near[node][sign, rows] = [not standing(e).isdisjoint(found) for e, found in zip(examples, near, strict=True)]
            for i, row in enumerate(rows):
                if row < self._prompts:
                    self._lens[node][row] = self._read(examples[i], logits[i])
                    if node in self._near:
                        self._patterns[node][row] = self._pattern(examples[i], seen.attention[head_of(node)][i])
        self.sights.add(seen)
        self.copying.add(seen)

    def shares(self, head: str) -> tuple[float, float]:
        """Of the examples whose answer stands in the prompt, those where it is among the highest tokens that a head writes, the lowest."""
        there = [bool(standing(example)) for example in self._task.examples]
        highest, lowest = self._near[head][:, there].mean(1).tolist() if any(there) else (0.0, 0.0)
        return highest, lowest

    def patterns(self, node: str) -> tuple[Pattern, ...]:
        """Of the first prompts, in order."""
        return tuple(each for _, each in sorted(self._patterns[node].items()))

    def lens(self, node: str) -> tuple[Lens, ...]:
        """Of the first prompts, in order."""
        return tuple(each for _, each in sorted(self._lens[node].items()))

    def _text(self, example: Example) -> str:
        return example.text or shown(self._model, example.clean)

    def _read(self, example: Example, logits: Tensor) -> Lens:
        """From the [vocabulary] logits of what a node writes."""
        best, worst = (logits.topk(min(TOP, len(logits)), largest=largest) for largest in (True, False))
        promoted, suppressed = (
            tuple((shown(self._model, [token]), value) for value, token in zip(side.values.tolist(), side.indices.tolist(), strict=True))
            for side in (best, worst)
        )
        return Lens(self._text(example), END, promoted, suppressed)

    def _pattern(self, example: Example, weights: Tensor) -> Pattern:
        tokens = tuple(shown(self._model, [token]) for token in example.clean)
        return Pattern(self._text(example), tokens, weights.cpu().numpy(), dict(example.positions))


def _dot(written: Tensor, direction: Tensor) -> np.ndarray:
    """[N, D] each -> [N]."""
    return (written * direction).sum(-1).double().cpu().numpy()
