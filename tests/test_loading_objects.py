"""Models that people hold: wrapped, compiled, with adapters, without a
head, elsewhere than in memory, quantized.
"""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import Tiny, random_model, random_prompts, tiny_config
from torch import Tensor, nn

import circuitdiscovery as cd
from circuitdiscovery.model.run import plain_run


def refused(source: Any, match: str, **options: Any) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match) as caught:
        cd.load_model(source, **options)
    assert "\n" not in str(caught.value)


def logits_of(source: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return source(tokens).logits[:, -1]


def agrees(source: Any, dtype: str = "float32", tolerance: float = 1e-4) -> Any:
    """Load an object; it computes the same, and is not changed: not
    its weights, their names, nor its modes."""
    before = {key: value.clone() for key, value in source.state_dict().items()}
    modules, modes = list(source.modules()), [module.training for module in source.modules()]
    model, prompts = cd.load_model(source, dtype=dtype), random_prompts(101, 4, seed=30)
    assert [module.training for module in source.modules()] == modes and all(
        map(lambda a, b: a is b, source.modules(), modules)
    )
    assert list(source.state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in source.state_dict().items())
    mine = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph)).float()
    source = source.eval()
    torch.testing.assert_close(mine, logits_of(source, prompts.clean).float(), atol=tolerance, rtol=0)
    return model


# ------------------------------------------------------------------ adapters


class LoRA(nn.Module):
    """A layer with an adapter, as PEFT has it: W x + scale * up(down(x)), until it is merged."""

    def __init__(self, base: Any, seed: int) -> None:
        super().__init__()
        self.base_layer: Any = base
        self.disable_adapters, self.merged, self.scale = False, False, 0.7
        rows, columns = base.weight.shape
        generator = torch.Generator().manual_seed(seed)
        self.transposed = type(base).__name__ == "Conv1D"
        rows, columns = (columns, rows) if self.transposed else (rows, columns)
        self.down = nn.Parameter(torch.randn(2, columns, generator=generator) / columns**0.5)
        self.up = nn.Parameter(torch.randn(rows, 2, generator=generator))

    def get_base_layer(self) -> nn.Module:
        return self.base_layer

    def merge(self, safe_merge: bool = False) -> None:
        added = self.scale * self.up @ self.down
        self.base_layer.weight.data += added.T if self.transposed else added
        self.merged = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.base_layer(x)
        return (
            out if self.disable_adapters or self.merged else out + self.scale * (x @ self.down.T @ self.up.T)
        )


class Saved(nn.Module):
    """A layer that was trained as a whole, as PEFT wraps it."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        other = copy.deepcopy(layer)
        other.weight.data = other.weight.data * 1.1
        self.original_module, self.modules_to_save, self.active_adapter = (
            layer,
            nn.ModuleDict({"mine": other}),
            "mine",
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.modules_to_save["mine"](x)


def with_adapters(hf: Any) -> Any:
    """A copy whose projections have adapters in place, as `add_adapter` does."""
    hf = copy.deepcopy(hf)
    number = 0
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if name in ("q_proj", "v_proj", "down_proj", "c_attn", "query_key_value"):
                setattr(parent, name, LoRA(child, number := number + 1))
    assert number
    return hf


@pytest.mark.parametrize("name", ["gpt2", "llama_biased", "neox_parallel"])
def test_adapters_are_merged_in_a_copy(name: str, tinies: Callable[[str], Tiny]) -> None:
    hf = tinies(name).hf
    held = with_adapters(hf)
    model = agrees(held)
    assert model.digest != tinies(name).model.digest
    assert agrees(held, "bfloat16", 0.3).digest == model.digest
    for module in held.modules():
        if isinstance(module, LoRA):
            module.disable_adapters = True
    assert agrees(held).digest == tinies(name).model.digest


def test_a_layer_that_was_trained_as_a_whole_counts(llama: Tiny) -> None:
    hf = copy.deepcopy(llama.hf)
    hf.lm_head = Saved(hf.lm_head)
    assert agrees(hf).digest != llama.model.digest


def test_an_adapter_that_cannot_be_merged_is_refused(llama: Tiny) -> None:
    hf = with_adapters(llama.hf)
    module = next(module for module in hf.modules() if isinstance(module, LoRA))
    module.merge = lambda safe_merge=False: 1 / 0  # type: ignore[method-assign]
    refused(hf, r"adapters cannot be merged \(division by zero\); merge them first")


@pytest.mark.filterwarnings("ignore")
def test_peft_itself(llama: Tiny, gpt2: Tiny) -> None:
    """The same with the package, where it is installed."""
    peft = pytest.importorskip("peft")

    def lora() -> Any:
        return peft.LoraConfig(target_modules="all-linear", r=4, init_lora_weights=False)

    model = agrees(peft.get_peft_model(copy.deepcopy(llama.hf), lora()))
    assert model.digest != llama.model.digest
    agrees(peft.get_peft_model(copy.deepcopy(gpt2.hf), lora()))
    added = copy.deepcopy(llama.hf)
    added.add_adapter(peft.LoraConfig(target_modules=["q_proj"], r=4, init_lora_weights=False))
    assert agrees(added).digest != llama.model.digest
    added.disable_adapters()
    assert agrees(added).digest == llama.model.digest
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    refused(peft.get_peft_model(copy.deepcopy(llama.hf), prompt), "learnt prompt .* cannot be merged")


# ------------------------------------------------------------------ wrapped


class Prefixed(nn.Module):
    """A model inside of another with the same config."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, tokens: Tensor) -> Any:
        return self.inner(tokens)


class Lightning(nn.Module):
    """A model inside of something that is not one."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.network = inner


def test_wrapped_models_are_the_models(tiny: Tiny) -> None:
    parallel = nn.DataParallel(tiny.hf)
    for wrapped in (
        torch.compile(tiny.hf, backend="eager"),
        parallel,
        torch.compile(parallel, backend="eager"),
    ):
        assert cd.load_model(wrapped).digest == tiny.model.digest
    assert agrees(Prefixed(copy.deepcopy(tiny.hf))).digest == tiny.model.digest
    assert agrees(Prefixed(copy.deepcopy(tiny.hf)), "bfloat16", 0.3).digest == tiny.model.digest


def test_a_model_that_compiles_itself_is_not_compiled(gpt2: Tiny) -> None:
    hf = copy.deepcopy(gpt2.hf)
    hf.compile(backend=lambda *_: pytest.fail("it is compiled"))
    assert cd.load_model(hf).digest == gpt2.model.digest


def test_something_that_holds_a_model_says_where(gpt2: Tiny) -> None:
    refused(
        Lightning(gpt2.hf), r"Lightning is not a model: give its .network, which is one \(GPT2LMHeadModel\)"
    )
    refused({"a": 1}, "dict is not a model: give a name, a folder")
    refused(type(gpt2.hf), "is not a model")


# ------------------------------------------------------------------ refused in one line


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_serial"])
def test_a_model_without_a_head_is_refused(name: str, tinies: Callable[[str], Tiny]) -> None:
    from transformers import AutoModelForSequenceClassification

    hf = tinies(name).hf
    refused(
        hf.base_model, "no head that predicts the next token in a .*Model; load it with AutoModelForCausalLM"
    )
    refused(AutoModelForSequenceClassification.from_config(hf.config), "no head that predicts the next token")


def test_a_config_that_makes_no_sense_is_refused(llama: Tiny) -> None:
    hf = copy.deepcopy(llama.hf)
    hf.config.rope_parameters["partial_rotary_factor"] = None
    refused(hf, "its config cannot be used: '<' not supported between instances of 'int' and 'NoneType'")


def test_weights_that_are_not_in_memory_are_refused(gpt2: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_config("gpt2"))
    refused(empty, "transformer.wte.weight is not in memory .*without offloading")
    hf = copy.deepcopy(gpt2.hf)
    hf.transformer.h[2].to("meta")
    refused(hf, "transformer.h.2.ln_1.weight is not in memory")


def test_quantized_weights_are_refused(llama: Tiny) -> None:
    hf = copy.deepcopy(llama.hf)
    layer = hf.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter((layer.weight * 20).to(torch.int8), requires_grad=False)
    refused(hf, "quantized weights .*q_proj.weight is torch.int8.*load it again")


def test_sharded_weights_are_refused(llama: Tiny) -> None:
    class DTensor(Tensor):
        """As torch names its own."""

    hf = copy.deepcopy(llama.hf)
    hf.model.norm.weight = nn.Parameter(torch.ones(32).as_subclass(DTensor))
    refused(hf, "sharded over processes; gather")


def test_a_forward_without_logits_is_refused(gpt2: Tiny) -> None:
    hf = copy.deepcopy(gpt2.hf)
    hf.register_forward_hook(lambda module, args, out: None if out is None else {"no": "logits"})
    refused(hf, "gives no logits")


def test_half_precision_objects(tiny: Tiny) -> None:
    """`hf.half()` and `hf.bfloat16()` round their rotary tables too, and still load."""
    for half in (torch.bfloat16, torch.float16):
        agrees(random_model(tiny.hf.config).to(half), str(half).removeprefix("torch."), 0.3)


# ------------------------------------------------------------------ weights that the object and the model share


CHANGED = r"its weights were written to since .*load that again"


def trained(hf: Any, optimizer: Any) -> None:
    """One step of training."""
    rows = random_prompts(101).clean
    hf(rows, labels=rows).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["gpt2", "llama", "neox_serial"])
@pytest.mark.parametrize("how", [{"foreach": True}, {"fused": True}], ids=str)
def test_a_model_whose_object_was_trained_is_refused(name: str, how: dict[str, Any]) -> None:
    """torch's own count of changes does not move where the optimizer is fused."""
    hf, prompts = random_model(tiny_config(name)), random_prompts(101)
    optimizer = torch.optim.AdamW(hf.parameters(), 1e-2, **how)
    model, kept = cd.load_model(hf), cd.load_model(copy.deepcopy(hf))
    copied, converted = copy.deepcopy(model), cd.load_model(hf, dtype="float64")
    circuit, before = cd.Circuit.full(model.graph), logits_of(hf, prompts.clean)
    hypothesis, earlier = cd.Circuit.empty(model.graph), cd.features.run(model, prompts.clean)
    trained(hf, optimizer)
    uses: list[Any] = [
        lambda: cd.run_circuit(model, prompts.task, circuit),
        lambda: cd.eap(model, prompts.task),
        lambda: cd.evaluate(model, prompts.task, hypothesis, effort="quick"),
        lambda: cd.features.run(model, prompts.clean),
        lambda: earlier.values("resid1"),
        lambda: cd.features.project(model, "m0/n1"),
        lambda: plain_run(model, prompts.clean, None),
        lambda: copy.deepcopy(model),
        lambda: pickle.dumps(model),
    ]
    for use in uses:
        with pytest.raises(cd.CircuitDiscoveryError, match=CHANGED) as caught:
            use()
        assert "\n" not in str(caught.value)
    for other in (kept, copied, converted):
        mine = cd.run_circuit(other, prompts.task, circuit).float()
        torch.testing.assert_close(mine, before, atol=1e-4, rtol=0)
    agrees(hf)  # loaded again


def test_one_number_that_was_changed_is_seen_and_reading_changes_nothing(gpt2: Tiny) -> None:
    hf = copy.deepcopy(gpt2.hf)
    model, prompts = cd.load_model(hf), random_prompts(101)
    hf(prompts.clean, labels=prompts.clean).loss.backward()
    hf.train().zero_grad()
    cd.eap(model, prompts.task)
    with torch.no_grad():
        hf.transformer.wte.weight[3, 5] += 1
    with pytest.raises(cd.CircuitDiscoveryError, match=CHANGED):
        cd.eap(model, prompts.task)


def test_weights_are_shared_and_what_was_copied_goes_with_the_object() -> None:
    """GPT-NeoX's queries, keys and values are rows of one matrix, which the model has in another order."""
    hf = random_model(tiny_config("neox_serial"))
    model, joint = cd.load_model(hf), hf.gpt_neox.layers[0].attention.query_key_value.weight
    assert model.W_E.data_ptr() == hf.gpt_neox.embed_in.weight.data_ptr()
    gone = weakref.ref(joint.untyped_storage())
    del hf, joint
    gc.collect()
    assert gone() is None
    assert len(cd.eap(model, random_prompts(101).task)) == len(model.graph)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_were_made_in_inference_mode(dtype: str) -> None:
    """They can be part of no gradient; and within the mode all is as without it."""
    prompts, plain = random_prompts(101), random_model(tiny_config("llama"))
    with torch.inference_mode():
        made = copy.deepcopy(plain)
        assert made.lm_head.weight.is_inference()
        within = cd.eap(cd.load_model(plain, dtype=dtype), prompts.task).values
        model = cd.load_model(made, dtype=dtype)
        assert cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph)).grad_fn is None
        assert torch.is_inference_mode_enabled()
    expected = cd.eap(cd.load_model(plain, dtype=dtype), prompts.task).values
    assert (expected == within).all() and (expected == cd.eap(model, prompts.task).values).all()


def test_loaded_models_can_be_compared(gpt2: Tiny) -> None:
    model, other = (cd.load_model(gpt2.folder) for _ in range(2))
    assert model == model and model != other and model.digest == other.digest
    assert {model: 1}[model] == 1 and other not in [model]
