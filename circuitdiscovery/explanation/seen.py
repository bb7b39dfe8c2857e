"""What plain runs on a task's clean prompts show of a circuit's nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.explanation.attention import Observed, Sights, named, one_names, shown
from circuitdiscovery.explanation.cards import Lens, Pattern
from circuitdiscovery.explanation.head_scores import TOP, CopyScores, among
from circuitdiscovery.explanation.heads import S2
from circuitdiscovery.explanation.parts import WrittenParts
from circuitdiscovery.explanation.words import standing
from circuitdiscovery.features.attribution import difference, direction_of
from circuitdiscovery.graph.nodes import head_of, parsed, whole_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task

EACH = 16  # every so many tokens are looked at before all are, to see that an answer is not among the highest


def offset_of(model: Model, example: Example) -> float:
    """What the unembedding's bias adds to the logit difference."""
    bias = model.b_U
    if bias is None:
        return 0.0
    return float(difference(example, lambda tokens: bias[list(tokens)])) * model.logit_scale


class Seen:
    """What plain runs on a task's clean prompts show of some nodes.

    Args:
        circuit: of whole nodes or of parts; heads are looked at as a whole.
        nodes: heads and MLPs, or parts of them.
        prompts: the first ones, on which attention and lens are kept.
        tokens: the most that copy scores are counted on.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        circuit: Circuit,
        nodes: Sequence[str],
        prompts: int,
        tokens: int | None,
    ) -> None:
        heads = tuple(dict.fromkeys(whole_of(node) for node in nodes if parsed(node).kind == "head"))
        count, self._graph = len(task), circuit.graph
        self.model, self.task, self.nodes, self.heads = model, task, tuple(nodes), heads
        self._prompts, self._names, self._some = prompts, one_names(task), model.W_U[::EACH].contiguous()
        # S-inhibition acts through heads that move the answer, whether the circuit has them or not
        everyone = heads and S2 in self._names
        self.watched = (
            tuple(n for n in model.graph.sources if parsed(n).kind == "head") if everyone else heads
        )
        self.sights, self.copying = (
            Sights(model, task, circuit.whole, heads),
            CopyScores(model, task, heads, tokens),
        )
        self.logit_diff = np.zeros(count)  # [examples], before a cap on the logits
        # [examples] each: what a node writes, and the part that a head finds at END itself
        self.direct = {node: np.zeros(count) for node in dict.fromkeys((*nodes, *self.watched))}
        self.of_itself = {head: np.zeros(count) for head in self.watched}
        # [2, examples]: whether a right, a wrong answer stands before END
        self.stands = np.array(
            [[bool(standing(e, e.correct)), bool(standing(e, e.incorrect))] for e in task.examples]
        ).T
        # [2, 2, examples]: whether this right or wrong answer is among the highest, the lowest
        self._near = {head: np.zeros((2, 2, count), dtype=bool) for head in self.watched}
        self._patterns: dict[str, dict[int, Pattern]] = {head: {} for head in heads}  # by row
        self._lens: dict[str, dict[int, Lens]] = {node: {} for node in nodes}

    def add(self, seen: Observed) -> None:
        """Add one more batch."""
        rows = seen.batch.rows.tolist()
        examples = [self.task.examples[row] for row in rows]
        direction = torch.stack([direction_of(self.model, example) for example in examples])  # [N, D]
        offsets = [offset_of(self.model, example) for example in examples]
        self.logit_diff[rows] = _dot(self.model.final_norm(seen.stream), direction) + offsets
        # right and wrong ones, by index in the batch
        answers = [
            {i: found for i, e in enumerate(examples) if (found := standing(e, getattr(e, side)))}
            for side in ("correct", "incorrect")
        ]
        shown_whole = [i for i, row in enumerate(rows) if row < self._prompts]
        split = WrittenParts.of(seen, self._graph, self.task) if self._graph.splits else None
        for node in self.direct:
            if parsed(node).part and split is not None:
                written = split.written(node)  # [N, D]
            else:
                written = seen.written(self.model.graph.source_index[node])
            self.direct[node][rows] = _dot(written, direction)
            if node in self._near:
                self.of_itself[node][rows] = _dot(seen.written_of_itself(node), direction)
                for near, found in zip(self._near[node], answers, strict=True):
                    near[:, [rows[i] for i in found]] = self._among(written[list(found)], found)
            for i in shown_whole if node in self._lens else ():
                if written[i].any():  # a part of other positions writes nothing here
                    self._lens[node][rows[i]] = self._read(examples[i], self._logits(written[i]))
            if split is not None and shown_whole and node in self._lens and not written.any():
                self._read_there(split, node, shown_whole, rows, examples)
        for head in self._patterns:
            for i in shown_whole:
                weights = seen.attention[head_of(head)][i]
                self._patterns[head][rows[i]] = self._pattern(examples[i], weights)
        self.sights.add(seen)
        self.copying.add(seen)

    def _read_there(
        self,
        split: WrittenParts,
        part: str,
        which: Sequence[int],
        rows: Sequence[int],
        examples: Sequence[Example],
    ) -> None:
        """The lens of a part of other positions than the answer's is at the last of them."""
        written, at = split.there(part), parsed(part).part[1:]
        if written is None:
            return
        for i in which:
            found = self._read(examples[i], self._logits(written[i]))
            self._lens[part][rows[i]] = replace(found, at=at)

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
        """Those of the first prompts, in order: of a head's parts those of the head."""
        return tuple(each for _, each in sorted(self._patterns.get(whole_of(node), {}).items()))

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
        # a copy: a view would hold the attention of all heads of the batch
        return Pattern(self._text(example), tokens, weights.cpu().numpy().copy(), named(example, self._names))


def _dot(written: Tensor, direction: Tensor) -> np.ndarray:
    """[N, D] each -> [N]."""
    return (written * direction).sum(-1).double().cpu().numpy()
