"""Where tensors are, without a card: every call of torch is watched as if the model were on one.

A tensor is on the card if it is a weight of the model, if it was made on the device of a tensor
that is there or like one, or if what it was made from is. A call that mixes the two, or reads a card's tensor as an array, is an
error here as it is with CUDA (but for what CUDA allows: numbers, indices, copies).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from tiny import Tiny
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import circuitdiscovery as cd

CARD, HOST = "card", "host"
# what makes a tensor of no other
MADE = (
    "tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "randint", "eye", "linspace",
    "as_tensor", "from_numpy", "frombuffer", "randperm", "multinomial",
)  # fmt: skip
# what may have indices or sources on the other side
FREE = ("__getitem__", "__setitem__", "copy_", "index_put_", "to", "cpu", "type", "masked_scatter")


class Mixed(AssertionError):
    """A call with tensors on both sides."""


class Watch(TorchFunctionMode):
    """Says of each tensor on which side it is, and refuses what mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.where = WeakTensorKeyDictionary()
        self.calls = 0

    def side(self, x: Tensor) -> str:
        return str(self.where.get(x, HOST))

    def put(self, value: Any) -> None:
        """All tensors of a model onto the card."""
        if isinstance(value, Tensor):
            self.where[value] = CARD
        elif isinstance(value, tuple | list):
            for each in value:
                self.put(each)
        elif isinstance(value, torch.nn.Module):
            self.put(list(value.parameters()) + list(value.buffers()))
        elif is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                self.put(getattr(value, field.name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        sides = {self.side(x) for x in inputs if x.dim() or self.side(x) == CARD}
        self.calls += 1
        if name == "numpy" and CARD in sides:
            raise Mixed("numpy() of a tensor on the card")
        if len(sides) > 1 and name not in FREE:
            raise Mixed(f"{name}: tensors on both sides, {[(self.side(x), list(x.shape)) for x in inputs]}")
        out = func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return torch.device("cpu:0" if self.side(inputs[0]) == CARD else "cpu")  # which torch takes alike
        side = self._side(name, args, kwargs, inputs, sides)
        if isinstance(out, Tensor) and any(out is x and self.side(x) != side for x in inputs):
            with torch._C.DisableTorchFunction():
                out = out.view_as(out)  # what comes from the other side is another tensor
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self.where[each] = side
        return out

    def _side(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor], sides: set[str]) -> str:
        asked = kwargs.get("device") or next((each for each in args if isinstance(each, torch.device)), None)
        if name == "cpu":
            return HOST
        if asked is not None:
            return CARD if str(asked) == "cpu:0" else HOST
        if name == "to":
            return self.side(inputs[-1])
        if name in MADE and not inputs:
            return HOST
        if name in FREE:
            return self.side(inputs[0])
        return CARD if CARD in sides else HOST


@pytest.fixture(params=["gpt2", "gemma3"])
def watched(request: pytest.FixtureRequest, tinies: Callable[[str], Tiny]) -> Iterator[tuple[Any, Any]]:
    """(a model on the card, a task)."""
    tiny = tinies(request.param)
    watch = Watch()
    watch.put(tiny.model)
    with watch:
        yield tiny.model, tiny.prompts.task
    assert watch.calls > 10


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "a circuit": lambda model, task: cd.run_circuit(model, task, cd.Circuit.full(model.graph)),
    "means": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="mean"),
    "noise": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="noise"),
    "random": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="random"),
    "eap": cd.eap,
    "eap_ig": lambda model, task: cd.eap_ig(model, task, steps=2, metric="kl_divergence"),
    "exact": cd.exact,
    "acdc": lambda model, task: cd.acdc(model, task, threshold=0.05),
    "acdc in groups": lambda model, task: cd.acdc(model, task, threshold=0.05, group_testing=True),
    "trace_back": lambda model, task: cd.trace_back(model, task, threshold=0.05),
    "hybrid": lambda model, task: cd.hybrid(model, task, edges=3, rounds=1),
    "matryoshka": lambda model, task: cd.matryoshka(model, task, edges=20, steps=3),
    "edge_pruning": lambda model, task: cd.edge_pruning(model, task, edges=20, steps=3),
    "path_patching": cd.path_patching,
    "evaluate": lambda model, task: cd.evaluate(model, task, cd.eap(model, task).best(30), effort="quick"),
    "curve": lambda model, task: cd.curve(model, task, cd.eap(model, task), metric="kl_divergence"),
    "explain": lambda model, task: cd.explain(model, task, cd.eap(model, task).best(30), effort="quick"),
}


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_the_card_stay_there(watched: tuple[Any, Any], way: str) -> None:
    WAYS[way](*watched)


def test_a_mixture_is_seen() -> None:
    watch, weight = Watch(), torch.ones(3)
    watch.put(weight)
    with watch, pytest.raises(Mixed, match="add"):
        torch.add(weight, torch.arange(3))
    with watch, pytest.raises(Mixed, match="numpy"):
        (weight * 2).numpy()
    with watch:
        like = torch.zeros(3, device=weight.device)
        assert watch.side(weight * like) == CARD and watch.side(weight.cpu()) == HOST
        assert watch.side(weight[torch.arange(2)]) == CARD and watch.side(torch.arange(2).to(weight)) == CARD
