"""How a circuit forms over training: the final model's circuit, measured at each checkpoint.

1. At each checkpoint, on the same examples: the metric of the model, of the circuit's edges and of no edges,
   and normalized faithfulness, as `evaluate` measures them. A circuit is a set of edges of the graph, which
   all checkpoints share, so it runs with the weights of any of them.
2. The strength of each role of the circuit's nodes (strengths.py), and what ablating each of these nodes
   costs. Beside these the highest scores of any head on random tokens: induction heads, which build on
   previous token heads, form within a short stretch of training (Olsson et al. 2022, arXiv 2209.11895).
3. If asked, a circuit of as many edges is searched anew at each checkpoint, and compared with the one that
   the same search finds at the last: how early the edges are the final ones. In Pythia other heads may take
   over a part while the algorithm remains (Tigges et al. 2024, arXiv 2407.10827).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.engine.ablation import Ablation
from circuitdiscovery.engine.metrics import Metric
from circuitdiscovery.engine.setup import Progress, Setup
from circuitdiscovery.files.disk import data_frame
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import whole_of
from circuitdiscovery.measure.estimates import Estimate
from circuitdiscovery.measure.evaluator import Evaluator
from circuitdiscovery.model.model import Model
from circuitdiscovery.search.attribution import eap_ig
from circuitdiscovery.task.task import Task
from circuitdiscovery.universality import forming_report
from circuitdiscovery.universality.strengths import check_roles, strengths
from circuitdiscovery.universality.tasks import task_for
from circuitdiscovery.universality.training_run import TrainingRun, sources_of
from circuitdiscovery.values import Value, left_out

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FAITHFUL = 0.9  # of normalized faithfulness, from which the text says that the circuit is there


@dataclass(frozen=True, repr=False)
class RoleStrength(Value):
    """A role at one checkpoint.

    Args:
        figure: what its strength is.
        nodes: the strength of each node.
        mean: over the nodes.
        direct: what each node writes onto the logit difference.
        effects: what ablating each node costs.
    """

    figure: str
    nodes: Mapping[str, Estimate]
    mean: Estimate
    direct: Mapping[str, Estimate]
    effects: Mapping[str, Estimate]


@dataclass(frozen=True, repr=False)
class Checkpoint(Value):
    """What `checkpoints` measured in one model.

    Args:
        step: of training.
        model: its name.
        full, circuit, empty: the metric of the model, of the circuit and of no edges.
        faithfulness: normalized; NaN where the model does not know the task.
        reason: why it is said not to know it: it is not better than no edges by more than the interval of the
            difference.
        roles: by role.
        highest: of each score on random tokens the head of the model that has the highest, and this.
        found: the edges of the circuit that was searched here.
    """

    step: int
    model: str
    full: Estimate
    circuit: Estimate
    empty: Estimate
    faithfulness: Estimate
    reason: str | None
    roles: Mapping[str, RoleStrength]
    highest: Mapping[str, tuple[str, float]]
    found: tuple[str, ...] | None = left_out()

    @property
    def knows(self) -> bool:
        """Whether the model knows the task, so that there is a faithfulness."""
        return self.reason is None


@dataclass(frozen=True, repr=False)
class Forming(Value):
    """How a circuit forms over training (see `checkpoints`).

    Args:
        task, part, examples: what it was measured on.
        metric, ablation, direction: how.
        edges, edges_total: of the circuit, and of the graph.
        own_step: the step whose weights the circuit was found in; None where it does not say, or where that
            is none of the checkpoints.
        steps: the checkpoints, in order.
        mean_over: the fewest prompts that a replacement is a mean over; None: it is not a mean.
    """

    task: str
    part: str  # "held_out" or "examples"
    examples: int
    metric: str
    ablation: str
    direction: str
    edges: int
    edges_total: int
    own_step: int | None
    steps: tuple[Checkpoint, ...]
    mean_over: int | None = left_out()

    @property
    def strongest(self) -> dict[str, str]:
        """Of each role the node whose ablation costs most at the last checkpoint."""
        return {
            role: max(each.effects, key=lambda node: each.effects[node])
            for role, each in self.steps[-1].roles.items()
        }

    @property
    def known_from(self) -> int | None:
        """The first step from which on every checkpoint knows the task; None: the last one does not."""
        return self._from([each.knows for each in self.steps])

    @property
    def faithful_from(self) -> int | None:
        """The first step from which on the circuit's faithfulness is at least .9 at every checkpoint."""
        return self._from([each.faithfulness >= FAITHFUL for each in self.steps])

    def _from(self, holds: list[bool]) -> int | None:
        first = max((i for i, one in enumerate(holds) if not one), default=-1) + 1
        return self.steps[first].step if first < len(holds) else None

    @property
    def overlap(self) -> tuple[float, ...]:
        """The Jaccard index of the edges found at each checkpoint and at the last; empty without a search."""
        found = [set(each.found) for each in self.steps if each.found is not None]
        return tuple(len(each & found[-1]) / max(1, len(each | found[-1])) for each in found)

    @property
    def chance(self) -> float:
        """About the Jaccard index of two random sets of as many edges."""
        return self.edges / (2 * self.edges_total - self.edges)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per checkpoint: step, model, knows, and each figure with its limits; of each role the
        strength, direct effect and effect of its strongest node, and the mean strength. Needs pandas."""
        return data_frame(forming_report.rows(self))

    @guarded
    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the metric, the faithfulness and the strengths of the roles over the steps.

        Args:
            path: a .png, .svg or .pdf file to write; by default none.

        Returns:
            Matplotlib's figure.
        """
        return forming_report.plot(self, path)

    def __str__(self) -> str:
        return "\n".join(forming_report.lines(self))


@guarded
def checkpoints(
    models: Any,
    circuit: Circuit,
    task: Any,
    *,
    metric: str | Metric | Any | None = None,
    ablation: str | Ablation = "resample",
    direction: str = "noising",
    search: bool = False,
    examples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    device: str | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Forming:
    """How a circuit forms over training: its faithfulness and the strength of its roles at each checkpoint.

    The strength of a role, by its name: of `previous token`, `duplicate token` and `induction` the score of
    this name on random tokens; of name movers (negative and backup ones too) attention from END to IO; of
    `S-inhibition` attention from END to S2; of `mover of X` attention to X from where the circuit reads the
    head; of any other role, and of MLPs, the direct effect on the logit difference. Attention is the mean
    over the prompts.

    Args:
        models: a folder that holds checkpoints (step-N, step_N, stepN or checkpoint-N); step -> a model or
            what `load_model` takes; or a list of these, numbered by their names where all end in a step, else
            from 0. One at a time is loaded.
        circuit: of the final model; with roles (`circuit.with_roles(explain(...).roles)`) their strength is
            measured.
        task: a name or a file, drawn for the models' tokenizer; or a `Task`. Its held-out examples are
            measured if it has some; a search uses its examples.
        metric, ablation, direction: as in `evaluate`.
        search: also search a circuit of as many edges at each checkpoint, by `eap_ig`.
        examples, seed: as in `load_task`, of a task by name; the seed is that of the bootstrap, too.
        batch_size: examples in one forward; by default what memory allows.
        device, dtype: as in `load_model`.
        progress: called with (checkpoints done, all of them); True: a bar.

    Returns:
        The figures of every checkpoint, with 95% intervals over the examples.

    Raises:
        CircuitDiscoveryError: no checkpoint; one that cannot be loaded, or has another graph, width or
            vocabulary; a role of something that is neither a head nor an MLP.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> circuit = cd.Circuit.from_nodes(model.graph, ["a0.h0", "a1.h3", "a2.h0"])
    >>> circuit = circuit.with_roles({"S-inhibition": ["a1.h3"]})
    >>> found = cd.universality.checkpoints({0: model, 100: model}, circuit, "ioi", examples=8)
    >>> found.known_from, found.steps[0].roles["S-inhibition"].figure
    (0, 'attention from END to S2')
    """
    check_roles(circuit)
    run = TrainingRun(sources_of(models), circuit, device, dtype)
    own_digest, own_step = circuit.info.get("model", {}).get("digest"), None
    steps, asked, how = list[Checkpoint](), None, dict[str, Any]()
    for step in run.sources:
        model = run.load(step)
        if asked is None:
            drawn = task_for(model, task, examples=examples, seed=seed)
            asked = _Asked(circuit, drawn, metric, ablation, direction, search, seed, batch_size)
        if model.digest == own_digest:
            own_step = step
        point, how = asked.at(step, model)
        steps.append(point)
        del model
        if progress is not None:
            progress(len(steps), len(run.sources))
    return Forming(
        edges=len(circuit), edges_total=len(circuit.graph), own_step=own_step, steps=tuple(steps), **how
    )


@dataclass(frozen=True)
class _Asked:
    """What is measured at each checkpoint (see `checkpoints`)."""

    circuit: Circuit
    task: Task
    metric: Any
    ablation: str | Ablation
    direction: str
    search: bool
    seed: int
    batch_size: int | None

    def at(self, step: int, model: Model) -> tuple[Checkpoint, dict[str, Any]]:
        """(the figures of a checkpoint, what was measured and how)."""
        circuit, used, metric = self.circuit, self.task.held_out or self.task, self.metric or self.task.metric
        options: dict[str, Any] = {"metric": metric, "ablation": self.ablation, "batch_size": self.batch_size}
        setup = Setup.of(model, used, circuit.graph, direction=self.direction, **options)
        evaluator = Evaluator.build(setup, seed=self.seed)
        strength = strengths(model, used, circuit, batch_size=self.batch_size, seed=self.seed)
        ablated = {node: _without(circuit.graph, node) for nodes in strength.nodes.values() for node in nodes}
        masks = [circuit.graph.allowed, circuit.mask, np.zeros_like(circuit.mask)]
        evaluator.measure([*masks, *ablated.values()])
        full, kept, empty = map(evaluator.values, masks)
        faithfulness, reason = evaluator.normalized(kept, full, empty)
        roles = {
            role: RoleStrength(
                str(strength.figures[role]),
                nodes,
                strength.means[role],
                {node: strength.direct[node] for node in nodes},
                {node: evaluator.damage(full, evaluator.values(ablated[node])) for node in nodes},
            )
            for role, nodes in strength.nodes.items()
        }
        found = Checkpoint(
            step=step,
            model=model.name,
            full=evaluator.mean(full),
            circuit=evaluator.mean(kept),
            empty=evaluator.mean(empty),
            faithfulness=Estimate(math.nan) if faithfulness is None else faithfulness,
            reason=reason,
            roles=roles,
            highest=strength.highest,
            found=self._found(model, options) if self.search else None,
        )
        return found, {
            "task": self.task.title,
            "part": "examples" if self.task.held_out is None else "held_out",
            "examples": len(used),
            "metric": evaluator.metric.name,
            "ablation": setup.ablation_name,
            "direction": setup.direction,
            "mean_over": setup.mean_over,
        }

    def _found(self, model: Model, options: Mapping[str, Any]) -> tuple[str, ...]:
        """The edges of a circuit of as many edges that is searched in this model."""
        graph = self.circuit.graph
        scores = eap_ig(model, self.task, graph=graph, split_qkv=graph.split_qkv, **options)
        return scores.best(len(self.circuit)).edges


def _without(graph: Graph, node: str) -> np.ndarray:
    """[sources, receivers]: every edge but those out of a node, or of its parts."""
    mask = graph.allowed.copy()
    mask[[node in (source, whole_of(source)) for source in graph.sources]] = False
    return mask
