"""Where tensors are, without a card: every call of torch is watched as if the model were on one, or its layers
on several.

A tensor is on a card if it is a weight of the model, if it was made on the device of a tensor
that is there or like one, or if what it was made from is. A call that mixes two sides, or reads a card's tensor as an array, is an
error here as it is with CUDA (but for what CUDA allows: numbers, the host's indices, copies).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from test_families import CASES, VOCABULARY, config_of
from tiny import Tiny, random_model, random_prompts
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import circuitdiscovery as cd
from circuitdiscovery.model.object import held
from circuitdiscovery.model.placement import placement

HOST, CARD, *OTHERS = "cpu", "cpu:0", "cpu:1", "cpu:2"  # which torch takes alike
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

    def put(self, value: Any, card: str = CARD) -> None:
        """All tensors of a model, or of a part of it, onto a card."""
        if isinstance(value, Tensor):
            self.where[value] = card
        elif isinstance(value, tuple | list):
            for each in value:
                self.put(each, card)
        elif isinstance(value, torch.nn.Module):
            self.put(list(value.parameters()) + list(value.buffers()), card)
        elif is_dataclass(value) and not isinstance(value, type):
            for field in fields(value):
                self.put(getattr(value, field.name), card)

    def spread(self, hf: Any) -> Any:
        """A Hugging Face model as `load_model` has it with each layer on a card of its own."""
        layers = held(hf, "tiny").layers
        count = len(hf.get_submodule(layers))
        cards = {f"{layers}.{number}": (CARD, *OTHERS)[number % 3] for number in range(count)}
        with self:
            return cd.load_model((hf, None), device_map=cards)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        inputs = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if func is torch.autograd.grad:
            return self._grad(*args, **kwargs)
        sides = {self.side(x) for x in inputs if x.dim() or self.side(x) != HOST}
        self.calls += 1
        if name == "numpy" and sides - {HOST}:
            raise Mixed("numpy() of a tensor on the card")
        if name == "__getitem__" and self.side(args[0]) == HOST and sides - {HOST}:
            raise Mixed("an array of the host has indices on a card")
        if len(sides) > 1 and (name not in FREE or len(self._bound(name, args) - {HOST}) > 1):
            raise Mixed(f"{name}: tensors on both sides, {[(self.side(x), list(x.shape)) for x in inputs]}")
        out = func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return torch.device(self.side(inputs[0]))
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
            return str(asked)
        if name == "to":
            return self.side(inputs[-1])
        if name in MADE and not inputs:
            return HOST
        if name in FREE:
            return self.side(inputs[0])
        return next(iter(sides - {HOST}), HOST)

    def _grad(self, outputs: Any, inputs: Any, grad_outputs: Any = None, **kwargs: Any) -> tuple[Tensor, ...]:
        """Each gradient is where its input is, and what it begins with where the output is."""
        begins = tree_leaves(grad_outputs)
        if any(
            isinstance(each, Tensor) and self.side(each) != self.side(of)
            for each, of in zip(begins, tree_leaves(outputs), strict=False)
        ):
            raise Mixed("grad: begins on another side than its output")
        with torch._C.DisableTorchFunction():
            found = torch.autograd.grad(outputs, inputs, grad_outputs, **kwargs)
        inputs = (inputs,) if isinstance(inputs, Tensor) else inputs
        for each, of in zip(found, inputs, strict=True):
            self.where[each] = self.side(of)
        return found

    def _bound(self, name: str, args: Any) -> set[str]:
        """Where the tensors are that must be on one card or on the host: one that is indexed, and its indices;
        what is written there is copied only where the place is a slice."""
        if name not in ("__getitem__", "__setitem__", "index_put_"):
            return set()
        index = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
        bound = [args[0], *index, *([args[2]] if len(args) > 2 and index else [])]
        return {self.side(each) for each in bound if isinstance(each, Tensor) and each.dim()}


@pytest.fixture(params=["gpt2", "gemma3"])
def watched(request: pytest.FixtureRequest, tinies: Callable[[str], Tiny]) -> Iterator[tuple[Any, Any]]:
    """(a model on the card, a task)."""
    tiny = tinies(request.param)
    watch = Watch()
    watch.put(tiny.model)
    with watch:
        yield tiny.model, tiny.prompts.task
    assert watch.calls > 10


CHAIN = cd.Hypothesis("tokens", dict.fromkeys(("a0.h1", "m0", "a1.h0", "m1", "a2.h1"), ()), shared=())
WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "a circuit": lambda model, task: cd.run_circuit(model, task, cd.Circuit.full(model.graph)),
    "means": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="mean"),
    "noise": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="noise"),
    "random": lambda model, task: cd.run_circuit(model, task, cd.eap(model, task).top(40), ablation="random"),
    "eap": cd.eap,
    "eap_ig": lambda model, task: cd.eap_ig(model, task, steps=2, metric="kl_divergence"),
    "clean_corrupted": cd.clean_corrupted,
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
    "scrub": lambda model, task: cd.scrub(model, task, CHAIN, draws=2, renamed=2),
}


@pytest.mark.parametrize("way", WAYS)
def test_tensors_of_the_card_stay_there(watched: tuple[Any, Any], way: str) -> None:
    WAYS[way](*watched)


def numbers(found: Any) -> list[float]:
    """All that a way gives, as numbers."""
    if isinstance(found, Tensor):
        return found.flatten().tolist()
    if isinstance(found, cd.Circuit | cd.Scores):
        return [*np.ravel(found.mask if isinstance(found, cd.Circuit) else found.values).astype(float)]
    if isinstance(found, dict | list):
        return [
            each
            for value in (found.values() if isinstance(found, dict) else found)
            for each in numbers(value)
        ]
    if hasattr(found, "to_dict"):
        return numbers(found.to_dict())
    return [float(found)] if isinstance(found, int | float) else []


def tokens(task: cd.Task) -> list[list[int]]:
    return [list(each.clean) for each in task.examples] * 4


def dictionary(model: Any, task: Any) -> Any:
    return cd.features.train_sae(cd.features.activations(model, tokens(task), "m1"), n=8, k=2, steps=2)


def parts(model: Any) -> cd.Graph:
    return cd.split(model, {"m1": [1, 3], "a0.h1": {"second": [1]}})


FEATURES: dict[str, Callable[[Any, Any], Any]] = {
    "explain parts": lambda model, task: cd.explain(
        model, task, cd.eap(model, task, graph=parts(model)).best(30), effort="quick"
    ),
    "neurons": lambda model, task: cd.neurons(model, task, top=3),
    "activations": lambda model, task: cd.features.activations(model, tokens(task), "m1.neurons").values,
    "an edit": lambda model, task: cd.features.run(model, tokens(task), edits={"a1": lambda x: x * 0}).logits,
    "a head's weights": lambda model, task: [
        value for _, value in cd.features.project(model, "a1.h1").promoted
    ],
    "snippets": lambda model, task: [
        value for _, value in cd.features.top_activations(model, "m1/n3", tokens(task)).promoted
    ],
    "a lens": lambda model, task: cd.features.lens(model, kind="linear", fit_on=tokens(task)).read(task),
    "steering": lambda model, task: cd.features.steer(model, task, "m1/n3", by=(1,), draws=2),
    "a dictionary": lambda model, task: cd.features.evaluate_sae(
        dictionary(model, task), cd.features.activations(model, tokens(task), "m1"), model=model, task=task
    ),
    "end to end": lambda model, task: (
        cd.features.train_sae(
            cd.features.activations(model, tokens(task), "m1"), n=8, k=2, steps=2, end_to_end=model
        ).W_dec
    ),
    "a patchscope": lambda model, task: cd.features.patchscope(
        model, tokens(task), "resid1", into=2, target=tokens(task)[0], target_position=2
    ),
    "a probe": lambda model, task: cd.features.probe(
        cd.features.activations(model, tokens(task), "resid2"),
        [number % 2 for number in range(len(tokens(task)))],
        control=False,
    ).erase(model, task, draws=2),
    "transfer": lambda model, task: [
        value
        for each in cd.universality.transfer(
            {str(n): (model, cd.eap(model, task).best(n)) for n in (10, 20, 30)}, {"t": task}
        ).faithfulness
        for value in (each[0], each[0].low, each[0].high)
    ],
    "neurons in common": lambda model, task: [
        *cd.universality.neurons(model, model, tokens(task)).correlation.ravel()
    ],
    "heads in common": lambda model, task: [
        *cd.universality.heads(model, model, tokens(task)).correlation.ravel()
    ],
    "circuits": lambda model, task: cd.universality.circuits(
        {"a": (model, cd.eap(model, task).best(30)), "b": (model, cd.eap(model, task).best(20))}, task
    ),
}
ELSEWHERE = (
    "clean_corrupted",
    "exact",
    "trace_back",
    "hybrid",
    "curve",
    "noise",
    "random",
)  # beside SPREAD, of one model
SPREAD = (
    "explain",
    "a circuit",
    "means",
    "eap",
    "eap_ig",
    "acdc",
    "matryoshka",
    "edge_pruning",
    "path_patching",
    "evaluate",
    "scrub",
)


@pytest.mark.parametrize(
    ("way", "name"),
    [(way, name) for name in ("gpt2", "gemma3") for way in SPREAD]
    + [(way, "gpt2") for way in (*ELSEWHERE, *FEATURES)]
    # whose norms, or some of them, have no weights
    + [(way, name) for name in ("olmo2", "olmo3", "opt as galactica") for way in ("a circuit", "eap")],
)
def test_layers_on_several_cards_give_what_one_gives(
    tinies: Callable[[str], Tiny], name: str, way: str
) -> None:
    if name in CASES:
        hf = random_model(config_of(*CASES[name]))
        model, task = cd.load_model((hf, None)), random_prompts(VOCABULARY).task
    else:
        tiny = tinies(name)
        hf, model, task = tiny.hf, tiny.model, tiny.prompts.task
    watch, call = Watch(), (WAYS | FEATURES)[way]
    alone, model = call(model, task), watch.spread(hf)
    with watch:
        assert len(model.devices) == 3
        found = call(model, task)
    one, several = (np.array(numbers(each)) for each in (alone, found))
    assert one.size > 3
    np.testing.assert_allclose(several, one, atol=2e-5 * max(1e-3, np.abs(one).max()))


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


def test_layers_go_where_the_map_says(tinies: Callable[[str], Tiny]) -> None:
    hf, cpu, meta = tinies("gpt2").hf, torch.device("cpu"), torch.device("meta")
    asked = {
        "transformer.h.1": "cpu",
        "transformer": "meta",
        "transformer.h.0.attn": "cpu",
        "lm_head": "meta",
    }

    def placed(asked: Any) -> list[torch.device]:
        where = placement(hf, "transformer.h", "transformer.h", asked, torch.float32, "tiny")
        weights = (
            "transformer.wte.weight",
            *(f"transformer.h.{i}.ln_1.weight" for i in range(3)),
            "lm_head.weight",
        )
        return [where(weight) for weight in weights]

    assert placed(asked) == [meta, meta, cpu, meta, meta]  # what is shared is with the first layer
    assert placed({"": "cpu"}) == [cpu] * 5
    with pytest.raises(cd.CircuitDiscoveryError, match=r"transformer\.h\.0 is spread over several devices"):
        placed({"transformer.h.0.attn": "cpu", "transformer.h.0.mlp": "meta"})
    for wrong, why in (
        ({"transformer.h.0": "cpu"}, r"transformer\.h\.1 has no device"),
        ({"": "disk"}, "bfloat16"),
        ({"": "nowhere"}, "no device 'nowhere'"),
        ("even", "valid: auto, balanced"),
        (3, "a mapping from modules to devices"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=why):
            placed(wrong)


def test_a_map_by_accelerate(tinies: Callable[[str], Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tinies("gpt2")
    if not torch.cuda.is_available():
        model = cd.load_model(tiny.hf, device_map="auto")
        assert model.devices == (torch.device("cpu"),)
        assert (cd.eap(model, tiny.prompts.task).values == cd.eap(tiny.model, tiny.prompts.task).values).all()
    with pytest.raises(cd.CircuitDiscoveryError, match="exclude each other"):
        cd.load_model(tiny.hf, device="cpu", device_map="auto")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"pip install circuitdiscovery\[large\]"):
        cd.load_model(tiny.hf, device_map="auto")
