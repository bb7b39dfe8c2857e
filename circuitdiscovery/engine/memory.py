"""How much memory a method may take, and how many examples go through at once for it.

A budget is what a method may hold beside the model's weights and what Python holds already: 80% of what is
free, unless `memory_budget` says another one. What each method needs is a `Need`, counted from the shapes
(search/cost.py prints it): what is held whatever goes through at once, and what each example takes. A budget
never makes more examples go through at once than without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdiscovery.arguments import guarded
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.text import size

if TYPE_CHECKING:
    import torch

    from circuitdiscovery.graph.graph import Graph
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task

_SHARE = 0.8  # of what is free
_PIECE = 1 / 8  # of a budget, for what is computed some at a time
_MARGIN = 1.5  # a need counts the largest tensors; what is beside them takes up to half as much again
_CGROUP = Path("/sys/fs/cgroup")
_asked: ContextVar[int | None] = ContextVar("memory budget", default=None)


@guarded
def memory_budget(memory: int | str) -> AbstractContextManager[None]:
    """A bound of the memory that searches, measurements and explanations take, for a `with` statement.

    Fewer examples go through at once where all do not fit; what is found does not change but for roundings.
    Without it the bound is 80% of what is free when a search begins.

    Args:
        memory: bytes, or a text such as "8GB" (1 GB is 10^9 bytes, 1 GiB is 2^30): what may be held beside
            the model's weights, on each device and in each process.

    Raises:
        CircuitDiscoveryError: not a size; inside, where one example alone needs more.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> with cd.memory_budget("100MB"):
    ...     scores = cd.eap(model, cd.load_task("ioi", model, examples=4))
    """
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise CircuitDiscoveryError(f"memory must be bytes or a text such as '8GB', not {shown(memory)}")
    return _within(size(str(memory)))


@contextmanager
def _within(budget: int) -> Iterator[None]:
    token = _asked.set(budget)
    try:
        yield
    finally:
        _asked.reset(token)


def budget(device: torch.device, planned: float = 0) -> float:
    """The bytes that a method may hold beside the weights; infinity where nothing bounds it.

    Args:
        device: where the weights are.
        planned: bytes of weights that are not loaded yet.
    """
    if (asked := _asked.get()) is not None:
        return asked
    return max(0.0, _SHARE * (_free(device) - planned))


def at_once(each: float, device: torch.device, most: float = 2**27) -> int:
    """How many things that could go through one by one go through at once: as many as `most` bytes hold, or
    an eighth of the budget where that is less; at least one.

    Args:
        each: the bytes of one.
        device: where the weights are.
        most: bytes; more are not faster.
    """
    return max(1, int(min(most, _PIECE * budget(device)) // each))


def logits_at_once(model: Model) -> int:
    """The same of tokens whose logits are held, in float32."""
    return at_once(4 * model.vocab_size, model.device)


def _free(device: torch.device) -> float:
    """The free bytes of a device; of the machine's memory this process's share."""
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # is used again
        return torch.cuda.mem_get_info(device)[0] + held
    return min(_machine(), _group()) / distributed.world_size()


def _machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        names = getattr(os, "sysconf_names", {})
        if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
            return float("inf")
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2  # how much is free is not told


def _group() -> float:
    """What a container leaves of its own bound."""
    try:
        most, used = ((_CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        cached = next(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file")
        )
        return float(most) - float(used) + cached
    except (OSError, StopIteration, ValueError):  # there is none, or it says "max"
        return float("inf")


# ------------------------------------------------------------------ what methods need


@dataclass(frozen=True)
class Need:
    """What a method holds beside the weights, in bytes.

    Args:
        each: of every example that goes through at once.
        always: whatever goes through.
        packs: whether parts that are numbers times vectors stay so (model/packing.py).
    """

    each: float
    always: float = 0.0
    packs: bool = False

    def of(self, examples: int) -> float:
        """The bytes of so many examples at once."""
        return self.always + examples * self.each

    def with_kept(self, more: float) -> Need:
        """With so many bytes more that are always held."""
        return replace(self, always=self.always + more)

    def room(self, each: float, budget: float) -> float:
        """How many things of so many bytes each a budget has room for, beside what is always held."""
        return max(0.0, budget / _MARGIN - self.always) // each

    def fitting(self, most: int, budget: float) -> int:
        """How many examples go through at once in a budget, at most; 0 where not even one does."""
        return int(min(most, self.room(self.each, budget)))

    def at_once(self, most: int, budget: float) -> int:
        """As `fitting`.

        Raises:
            CircuitDiscoveryError: not even one does.
        """
        found = self.fitting(most, budget)
        if found or most < 1:
            return found
        whole = " of all examples together" if self.always > self.each else ""
        fewer = "fewer examples, " if whole else ""
        raise CircuitDiscoveryError(
            f"with one example at a time this holds about {_MARGIN * self.of(1) / 1e9:.2g} GB{whole} beside "
            f"the weights, and {budget / 1e9:.2g} GB may be held: give {fewer}shorter prompts, bfloat16, a "
            "method that needs less (`circuitdiscovery plan` lists them), or more memory (memory_budget, "
            "--memory)"
        )


def run_token(model: Model, length: int) -> float:
    """The bytes that a plain run without a gradient holds of one token of a prompt of so many."""
    return _layers(model, 0) / model.n_layers + scores_token(model, length)


def _longest(task: Task) -> int:
    return max(len(example.clean) for example in task.examples)


def of_token(model: Model, graph: Graph) -> int:
    """The bytes of what all sources write of one token."""
    return len(graph.sources) * model.d_model * model.W_E.element_size()


def packed_token(model: Model, graph: Graph) -> int:
    """The same where parts that are numbers times vectors are kept as numbers."""
    return graph.layout.rows(model.d_model) * model.d_model * model.W_E.element_size()


def scores_token(model: Model, length: int, backward: bool = False) -> int:
    """The bytes of one token's attention scores to so many, where they are held: what one layer makes of
    them; for a backward, what all layers keep beside."""
    holding = sum(block.holds_scores for block in model.blocks)
    tensors = (3 if holding else 0) + (2 * holding if backward else 0)  # in float32 at least
    return tensors * model.graph.n_heads * max(4, model.W_E.element_size()) * length


def _layers(model: Model, points: int) -> int:
    """The bytes that a run's backward keeps of one token, and gradients at some points of a line."""
    graph, block = model.graph, model.blocks[0]
    heads = (graph.n_heads + 2 * graph.n_kv_heads) * block.d_head
    layer = 4 * model.d_model + 2 * heads + 3 * block.d_mlp + 2 * model.d_model * points
    return graph.n_layers * layer * model.W_E.element_size()


def _logits(model: Model) -> int:
    return model.vocab_size * model.W_E.element_size()


def _streams(model: Model) -> int:
    """The bytes of what is read of one token where all edges are removed."""
    return 2 * model.n_layers * model.d_model * model.W_E.element_size()


def plain(model: Model, task: Task) -> Need:
    """Of plain runs, without a gradient."""
    longest = _longest(task)
    return Need(longest * run_token(model, longest) + 4 * _logits(model))


def masked(model: Model, graph: Graph, task: Task) -> Need:
    """Of runs under a mask: replacements, what is read where all edges are removed, what a run writes, and a
    state that others start from."""
    longest = _longest(task)
    written = packed_token(model, graph) + 2 * of_token(model, graph)
    token = written + _streams(model) + scores_token(model, longest)
    return Need(longest * token + 4 * _logits(model))


def along_a_line(model: Model, graph: Graph, task: Task, points: int) -> Need:
    """Of attribution: what sources write, what autograd keeps, the gradients at some points."""
    # of each part that reads for itself: what it makes of the stream, its gradient, and what a norm takes
    own = (3 + points) * graph.layout.numbers * model.W_E.element_size()
    longest = _longest(task)
    kept = _layers(model, points) + scores_token(model, longest, backward=True)
    return Need(longest * (packed_token(model, graph) + own + kept) + 4 * _logits(model), packs=True)


def measured(model: Model) -> int:
    """The bytes of one example's logits and of what a metric makes of them, in float32 at least; as many are
    those that a divergence is from."""
    return 3 * model.vocab_size * max(4, model.W_E.element_size())


def alternative(model: Model, graph: Graph, length: int, places: int) -> int:
    """The bytes of one receiver's alternative on a prompt of so many tokens, of which it differs at so many
    places: what it writes there, and what is measured of it."""
    return places * (of_token(model, graph) + scores_token(model, length)) + measured(model)


def stepwise(model: Model, graph: Graph, task: Task) -> Need:
    """Of one receiver's alternatives, one at a time; and replacements, two states and the full circuit's
    logits of all prompts."""
    longest = _longest(task)
    tokens = sum(len(example.clean) for example in task.examples) / distributed.world_size()
    each = alternative(model, graph, longest, longest) + measured(model)
    return Need(each, 3 * tokens * of_token(model, graph) + _logits(model) * len(task))


def floating(model: Model, graph: Graph, task: Task) -> Need:
    """As `stepwise`, and of gradients in a mask."""
    whole = stepwise(model, graph, task)
    return Need(max(whole.each, relaxed(model, graph, task).each), whole.always)


def relaxed(model: Model, graph: Graph, task: Task) -> Need:
    """Of gradients in a mask: differences, what receivers send back; and the replacements of all prompts."""
    tokens = sum(len(example.clean) for example in task.examples) / distributed.world_size()
    receivers = 3 * len(graph.receivers) * model.d_model * model.W_E.element_size()
    kept = 2 * of_token(model, graph) + _streams(model)  # a step's examples are a copy
    longest = _longest(task)
    scores = scores_token(model, longest, backward=True)
    return Need(longest * (of_token(model, graph) + receivers + scores), tokens * kept)


def by_steps(model: Model, graph: Graph, task: Task) -> Need:
    """Of gradients in a mask of some examples at a time, and what the model says to all of them; replacements
    that are kept are not among it."""
    return Need(relaxed(model, graph, task).each, _logits(model) * len(task))
