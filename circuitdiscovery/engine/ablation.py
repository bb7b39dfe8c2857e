"""What a removed edge carries: for every source, example and position
a replacement of what the source writes.

| ablation | replacement |
| --- | --- |
| `resample` | the paired corrupted run (interchange ablation; Chan et al. 2022, Conmy et al. 2023) |
| `mean` | mean over reference prompts there, of the template, else of the length (Wang et al. 2022) |
| `mean_all` | mean over all tokens of the reference prompts |
| `zero` | 0 |
| `noise` | a clean run with Gaussian noise on the embeddings (after Meng et al. 2022, arXiv 2202.05262) |
| `random` | a Gaussian draw with the reference's mean and variance, per source, position and dimension |

Meng et al. add noise to the subject's tokens alone, in deviations of the embeddings of their subjects; here
it is added to every token, in deviations of the whole embedding matrix.

The reference (moments.py) is drawn apart from the examples; where a task cannot draw,
a row's are the other rows, never itself.

A new ablation is one function, and one line in the registry; your own is any
object with `rows` and `own_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine.moments import Moments, run_sources
from circuitdiscovery.engine.replacements import Held, Replacements, filled
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts, lifted, spans_of
from circuitdiscovery.model.run import embed, run_tokens
from circuitdiscovery.model.source import same_weights
from circuitdiscovery.registry import ABLATIONS, canonical
from circuitdiscovery.task.batch import Batch
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.tokens import token_rows

_SEEDS = 2**63  # that a generator takes


class Ablation(Protocol):
    """What every function that takes `ablation=` accepts beside a name."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    @property
    def own_run(self) -> bool:
        """Whether the replacements of an example are one run's own activations. A circuit's logits are right
        with False, and come faster with True; the line of `eap_ig` and `clean_corrupted` begins at the
        embedding of that run, with False at the corrupted prompt's.
        """
        ...

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model]: the replacements for a batch's examples, all of one
        length T: these are asked for without pads.
        """
        ...


@dataclass(frozen=True)
class OnDemand:
    """An ablation that computes the replacements of a batch when they are asked for."""

    name: str
    own_run: bool
    compute: Callable[[Batch], Tensor]  # packed, where it packs
    parts: Parts  # of the sources
    mean_over: int | None = None  # the fewest prompts that a replacement is a mean over
    starts_at_input: bool = False  # whether a run that starts at the replacement of `input` writes the others
    kept: int = 0  # the bytes that are held from the first batch on

    def packed(self, batch: Batch) -> Tensor:
        """[rows, B, T, d_model] for a batch's examples, as `parts` packs them; what stands at pads is
        finite, and nothing reads it.
        """
        return self.compute(batch)

    def rows(self, batch: Batch) -> Tensor:
        """[sources, B, T, d_model]."""
        return self.parts.packing.dense(self.packed(batch))


# ------------------------------------------------------------------ the ablations


class Made(NamedTuple):
    """A function from a batch to its replacements; the fewest prompts that one is a mean over (None: it is
    not a mean); the bytes that it holds from the first batch on.
    """

    rows: Callable[[Batch], Tensor]
    mean_over: int | None = None
    kept: int = 0


def resample(model: Model, *, graph: Graph | None = None, **_: Any) -> Made:
    parts = Parts.of(model, graph)
    return Made(lambda batch: run_sources(model, batch.corrupted.to(model.device), parts))


def zero(model: Model, *, graph: Graph | None = None, **_: Any) -> Made:
    rows, kind = len(Parts.of(model, graph).packing), {"device": model.device, "dtype": model.dtype}
    return Made(lambda batch: torch.zeros(rows, *batch.clean.shape, model.d_model, **kind))


def noise(model: Model, *, seed: int, k: float, graph: Graph | None = None, **_: Any) -> Made:
    parts = Parts.of(model, graph)
    deviation = k * float(model.embedded(model.W_E).float().std())

    def rows(batch: Batch) -> Tensor:
        clean = embed(model, batch.clean.to(model.device))
        return run_sources(model, clean + deviation * _draws(seed, batch, 1, clean)[0], parts)

    return Made(rows)


def mean(model: Model, *, task: Task, reference: Task | None, graph: Graph | None = None, **_: Any) -> Made:
    moments = Moments(model, task, reference, graph=graph)
    return Made(
        lambda batch: filled(moments.of(batch)[0], batch).to(model.dtype), moments.least, moments.kept
    )


def random(model: Model, *, task: Task, reference: Task | None, seed: int, **_: Any) -> Made:
    moments = Moments(model, task, reference, variance=True)

    def rows(batch: Batch) -> Tensor:
        mean, variance = (filled(each, batch) for each in moments.of(batch))
        return (mean + variance.sqrt() * _draws(seed, batch, len(mean), mean)).to(model.dtype)

    return Made(rows, moments.least, moments.kept)


def mean_all(
    model: Model, *, task: Task, reference: Task | None, graph: Graph | None = None, **_: Any
) -> Made:
    moments = Moments(model, task, reference, tokens=True, graph=graph)

    def rows(batch: Batch) -> Tensor:
        mean = torch.stack(moments.of(batch)[0], dim=1)  # [S, B, D]
        return mean[:, :, None].expand(-1, -1, batch.clean.shape[1], -1).to(model.dtype)

    return Made(rows, moments.least, moments.kept)


def _draws(seed: int, batch: Batch, sources: int, like: Tensor) -> Tensor:
    """[S, B, T, D] standard Gaussians, each example's from its own
    generator, so that batches and pads do not matter.
    """
    each = zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)
    seeds = (((seed * 1_000_003 + row) % _SEEDS, length) for row, length in each)
    generators = ((torch.Generator().manual_seed(own), length) for own, length in seeds)
    return filled(
        [torch.randn(sources, n, like.shape[-1], generator=generator) for generator, n in generators], batch
    ).to(like)


# ------------------------------------------------------------------ by name, or given


def name_of(ablation: str | Ablation) -> str:
    """What reports call an ablation; an object without a name goes by its class."""
    return (
        canonical("ablation", ablation)
        if isinstance(ablation, str)
        else str(getattr(ablation, "name", type(ablation).__name__))
    )


def on_demand(
    model: Model,
    task: Task,
    ablation: str | Ablation,
    *,
    reference: Task | Tensor | Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    k: float = 3.0,
    graph: Graph | None = None,
) -> OnDemand:
    """The ablation by its name, its replacements computed batch by batch; one that is given comes back as it
    is, or where nodes of the graph are split, with the replacements of their parts (see `lifted`).
    """
    graph = graph or model.graph
    if isinstance(ablation, OnDemand):
        return ablation
    if type(ablation) is Replacements:
        return _given(model, task, ablation, graph)
    if not isinstance(ablation, str):
        return _own(model, task, ablation, graph)
    name = canonical("ablation", ablation)
    known, parts = ABLATIONS[name], Parts.of(model, graph)
    bare = graph.without("positions")
    reference = _as_reference(model, task, reference)
    made = known.load()(model, task=task, graph=bare, reference=reference, seed=seed, k=k)
    rows = _lifting(parts, task, made.rows, (bare, graph.whole))
    own_run = known.own_run
    return OnDemand(name, own_run, rows, parts, made.mean_over, starts_at_input=own_run, kept=made.kept)


def _given(model: Model, task: Task, given: Replacements, graph: Graph) -> OnDemand:
    """Replacements that were computed once, of the graph's own parts or of these without the positions."""
    _check_model(given, model)
    of = given.of.graph
    if of.splits not in (graph.splits, graph.without("positions").splits):
        raise CircuitDiscoveryError(
            "the given replacements are of a graph with other parts, or with none: "
            "replacements(..., graph=graph) computes this graph's"
        )
    parts = Parts(model, graph)
    rows = _lifting(parts, task, lambda batch: given.packed(batch, inside(of, task, batch)), (of,))
    return OnDemand(given.name, given.own_run, rows, parts, given.mean_over, starts_at_input=given.own_run)


def _check_model(given: Replacements, model: Model) -> None:
    """Refuse the replacements of another model, or of one whose weights have changed since."""
    own = given.of.model
    if own is model or (own.digest == model.digest and same_weights(own, model)):
        return
    theirs, ours = (
        f"{each.name} (weights {each.digest[:12]}, {str(each.dtype).removeprefix('torch.')})"
        for each in (own, model)
    )
    raise CircuitDiscoveryError(
        f"the given replacements were computed with the weights of {theirs}, which are not those of {ours}: "
        "replacements(model, task) computes this model's"
    )


def _own(model: Model, task: Task, ablation: Ablation, graph: Graph) -> OnDemand:
    """A user's own, which may be of the graph's parts, or of some of them as `lifted` has it."""
    if not callable(getattr(ablation, "rows", None)):
        raise CircuitDiscoveryError(
            f"an ablation is a name or an object with `rows(batch)`, not {type(ablation).__name__}"
        )
    bare, of_a_run = graph.without("positions"), getattr(ablation, "own_run", False)
    # what a user gives for parts need not be their vectors times a number
    parts = Parts(model, graph, packs=False)
    rows = _lifting(parts, task, _without_pads(ablation.rows), (graph, bare, graph.whole))
    own_run = of_a_run and not bare.splits  # what is lifted to other parts than positions is not theirs
    return OnDemand(
        name_of(ablation),
        own_run,
        rows,
        parts,
        getattr(ablation, "mean_over", None),
        starts_at_input=of_a_run,
    )


def _lifting(
    parts: Parts, task: Task, rows: Callable[[Batch], Tensor], known: Sequence[Graph]
) -> Callable[[Batch], Tensor]:
    """Of a split graph's sources, from those of one of some graphs in which fewer nodes are split."""
    graph = parts.graph
    if not graph.splits:
        return rows
    counts = [len(replace(parts, graph=each).packing) for each in known]

    def of_parts(batch: Batch) -> Tensor:
        values = rows(batch)
        for count, each in zip(counts, known, strict=True):
            if len(values) == count:
                return lifted(graph, values, each, inside(graph, task, batch), parts.packs)
        return values  # of a wrong shape, which whoever asked says

    return of_parts


def inside(graph: Graph, task: Task, batch: Batch) -> Mapping[str, Tensor]:
    """Where the spans of nodes that are split by positions are in a batch, as `Parts` has it."""
    if not graph.splits:
        return {}
    examples = [task.examples[row] for row in batch.rows.tolist()]
    positions, texts = [each.positions for each in examples], [each.text for each in examples]
    found = spans_of(graph, positions, texts, batch.lengths.tolist(), batch.clean.shape[1])
    return {node: each.to(batch.clean.device) for node, each in found.items()}


def _without_pads(rows: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
    """The rows of an ablation of one's own, which is asked for examples of one
    length at a time: it need not know of pads.
    """

    def with_pads(batch: Batch) -> Tensor:
        if not batch.padded:
            return rows(batch)
        each: dict[int, Tensor] = {}
        for columns, part in batch.by_length():
            values = rows(part)
            if values.shape[1:3] != part.clean.shape:
                return values  # of a wrong shape, which whoever asked says
            each |= dict(zip(columns, values.unbind(1), strict=True))
        return filled([each[i] for i in range(len(batch))], batch)

    return with_pads


def _as_reference(
    model: Model, task: Task, reference: Task | Tensor | Sequence[Sequence[int]] | None
) -> Task | None:
    """The reference prompts, as the corrupted prompts of a task."""
    if reference is None:
        return None
    if not isinstance(reference, Task):
        rows = token_rows("reference", reference)
        if not rows:
            raise CircuitDiscoveryError("reference: at least one prompt is needed")
        examples = tuple(Example(row, row, (0,), (1,), len(row) - 1, None, "") for row in rows)
        reference = replace(task, name="reference", part={}, examples=examples, held_out=None)
    reference.check(model.vocab_size, model.n_positions)
    return reference


@guarded
@torch.no_grad()
def replacements(
    model: Model,
    task: Task,
    *,
    ablation: str = "resample",
    reference: Task | Tensor | Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    k: float = 3.0,
    graph: Graph | None = None,
) -> Replacements:
    """The replacements of every source on every example, computed once: `rows(batch)` gives [sources,
    examples, positions, d_model].

    What circuits need of them beside is kept with them from their first use
    on, and takes about as much memory again.

    Args:
        model: a loaded model.
        task: its examples' prompts.
        ablation: `resample`, `mean`, `mean_all`, `zero`, `noise` or `random`.
        reference: prompts that `mean`, `mean_all` and `random` take their statistics from: a task (its
            corrupted prompts) or token ids; by default hundreds of corrupted prompts that the task draws
            apart from its examples, or where it cannot draw (a table, tokens) its own, for each row all but
            the row itself.
        seed: of the draws of `noise` and `random`.
        k: the standard deviation of `noise`, in standard deviations of the
            embedding matrix's entries (3 as in Meng et al., whose deviation is that of the subjects'
            embeddings, and whose noise is on the subject's tokens alone).
        graph: one with nodes that are split, whose parts' replacements are wanted; by default the model's.

    Returns:
        What `ablation=` takes in place of a name, for the task's examples and its held-out ones.

    Raises:
        CircuitDiscoveryError: an unknown ablation; a prompt whose
            length no other prompt of the reference has.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> alt = cd.replacements(model, cd.load_task("ioi", model, examples=4), ablation="mean")
    """
    how: dict[str, Any] = {"ablation": ablation, "reference": reference, "seed": seed, "k": k}
    graph = Graph.given(model, graph)
    computed = on_demand(model, task, **how, graph=graph)
    found = task.batches(run_tokens=run_tokens(model))  # as `patching.batches` has them
    held = tuple(
        Held(batch, computed.packed(batch), inside(graph, task, batch))
        for batch in (each.to(model.device) for each in found)
    )
    rest = task.held_out
    later = None if rest is None else cache(lambda: replacements(model, rest, **how, graph=graph))
    of = Parts.of(model, graph)
    return Replacements(computed.name, computed.own_run, held, of, later, mean_over=computed.mean_over)
