"""`Model.to_bridge`: back to TransformerLens, from whatever was loaded."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import BY_LENGTH, CASES, config_by_length, config_of
from test_loading_objects import Prefixed, with_adapters
from test_native import native, task_of, tokens
from tiny import CONFIGS, Tiny, random_model, random_prompts, save_gguf, save_tiny, tiny_config

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.compiler import assembled


def refused(model: cd.Model, match: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=match) as caught:
        model.to_bridge()
    assert "\n" not in str(caught.value)


def agrees(model: cd.Model, tolerance: float = 1e-4) -> Any:
    """The bridge of a model, whose logits are those of the whole circuit."""
    bridge: Any = model.to_bridge()
    assert type(bridge).__name__ == "TransformerBridge" and not bridge.training
    prompts = random_prompts(model.vocab_size, 4, seed=30)
    mine = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    with torch.no_grad():
        theirs = bridge(prompts.clean, return_type="logits")[:, -1]
    torch.testing.assert_close(theirs, mine, atol=tolerance, rtol=0)
    return bridge


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_folder_and_its_object_have_bridges_that_compute_the_same(name: str, tmp_path: Path) -> None:
    hf = random_model(tiny_config(name))
    hf.save_pretrained(tmp_path)
    agrees(cd.load_model(tmp_path))
    agrees(cd.load_model(hf))


@pytest.mark.parametrize("name", ["phi3", "granite", "gemma2", "olmo3", "mixtral", "gpt-oss", "opt", "mpt"])
def test_other_families(name: str) -> None:
    hf = random_model(config_of(*CASES[name]))
    agrees(cd.load_model(hf))


@pytest.mark.parametrize(("kind", "rope"), BY_LENGTH, ids=[kind for kind, _ in BY_LENGTH])
def test_rotary_scalings_of_each_prompts_own_length(kind: str, rope: dict[str, Any]) -> None:
    """Also of prompts that are longer than those that the bridge is compared on before it is handed out."""
    hf = random_model(config_by_length(kind, rope))
    model, prompts = cd.load_model(hf), random_prompts(101, 3, 40)
    bridge = agrees(model)
    mine = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    with torch.no_grad():
        theirs = bridge(prompts.clean, return_type="logits")[:, -1]
        expected = hf(prompts.clean).logits[:, -1]
    torch.testing.assert_close(theirs, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


def test_the_object_stays_as_it_was_and_shares_its_weights(llama: Tiny) -> None:
    hf = copy.deepcopy(llama.hf).train()
    names, modules, attention = list(hf.state_dict()), list(hf.modules()), hf.config._attn_implementation
    model = cd.load_model(hf)
    bridge = agrees(model)
    assert list(hf.state_dict()) == names and hf.training
    assert all(map(lambda a, b: a is b, hf.modules(), modules))
    assert hf.config._attn_implementation == attention
    pointers = {parameter.data_ptr() for parameter in hf.parameters()}
    assert {parameter.data_ptr() for parameter in bridge.original_model.parameters()} == pointers
    assert model.to_bridge() is not bridge


def test_a_bridge_gives_itself(gpt2: Tiny) -> None:
    bridge = cd.load_model(gpt2.folder).to_bridge()
    assert cd.load_model(bridge).to_bridge() is bridge
    assert cd.load_model((bridge, None)).to_bridge() is bridge
    own = native(attn_only=True, normalization_type="LN")
    model = cd.load_model(own)
    assert model.to_bridge() is own and copy.deepcopy(model).to_bridge() is own
    assert cd.load_model(torch.compile(own, backend="eager")).to_bridge() is own


def test_a_hook_in_the_bridge_ablates_what_a_circuit_without_a_heads_edges_does(gpt2: Tiny) -> None:
    """Zero ablation of a1.h2, on both sides."""
    model = cd.load_model(gpt2.hf, dtype="float32")
    bridge: Any = model.to_bridge()
    prompts = random_prompts(101, 4, seed=3)

    def silence(z: torch.Tensor, hook: Any) -> torch.Tensor:
        heads = z.view(*z.shape[:2], 4, -1).clone()
        heads[:, :, 2] = 0
        return heads.view(z.shape)

    hooks: list[Any] = [("blocks.1.attn.hook_z", silence)]
    with torch.no_grad():
        expected = bridge.run_with_hooks(prompts.clean, fwd_hooks=hooks, return_type="logits")[:, -1]
    kept = [edge for edge in model.graph.edges if not edge.startswith("a1.h2->")]
    circuit = cd.Circuit.from_edges(model.graph, kept)
    mine = cd.run_circuit(model, prompts.task, circuit, ablation="zero")
    torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
    whole = cd.run_circuit(model, prompts.task, cd.Circuit.full(model.graph))
    assert (mine - whole).abs().max() > 0.01


def test_the_patterns_that_hooks_see_are_hugging_faces() -> None:
    """Though the object that was loaded computes its attention in one step, which has no patterns."""
    hf = random_model(tiny_config("llama"))
    assert hf.config._attn_implementation == "sdpa"
    model, rows = cd.load_model(hf), random_prompts(101, 4).clean
    bridge: Any = model.to_bridge()
    hf.set_attn_implementation("eager")
    with torch.no_grad():
        expected = hf(rows, output_attentions=True).attentions
        _, cache = bridge.run_with_cache(rows)
    for layer, pattern in enumerate(expected):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_pattern"], pattern, atol=1e-5, rtol=0)


def test_the_dtype_is_the_models(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "llama")
    for dtype, tolerance in ((torch.bfloat16, 0.2), (torch.float64, 1e-5)):
        bridge = agrees(cd.load_model(folder, dtype=dtype), tolerance)
        assert {parameter.dtype for parameter in bridge.parameters()} == {dtype}


def test_a_gguf_file_has_a_bridge(llama: Tiny, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    agrees(cd.load_model(save_gguf(tmp_path / "tiny.gguf", llama.hf)))


def test_the_bridge_reads_text_as_the_model_does_and_leaves_its_tokenizer(gpt2: Tiny, words: Path) -> None:
    """Also one that was made in memory, which TransformerLens cannot look up."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    inner = AutoTokenizer.from_pretrained(words).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w1", eos_token="w1")
    model = cd.load_model((gpt2.hf, tokenizer))
    bridge: Any = model.to_bridge()
    text = "w5 w7 w99"  # w1 is a special token, which is cut out of w100
    assert bridge.to_tokens(text, prepend_bos=False)[0].tolist() == tokenizer(text).input_ids == [5, 7, 99]
    assert bridge.to_tokens(text, prepend_bos=True)[0].tolist() == [1, 5, 7, 99]
    assert tokenizer.pad_token is None and model.tokenizer is tokenizer


def test_a_copy_in_another_process_has_the_bridge_of_its_folder(gpt2: Tiny) -> None:
    agrees(pickle.loads(pickle.dumps(cd.load_model(gpt2.folder))))
    agrees(copy.deepcopy(cd.load_model(gpt2.folder)))
    refused(pickle.loads(pickle.dumps(cd.load_model(gpt2.hf))), "is gone; keep it, or load it again")


# ------------------------------------------------------------------ refused in one line


def test_an_object_that_is_gone() -> None:
    """A model does not keep the user's object alive."""
    hf = random_model(tiny_config("llama"))
    model, bridge = cd.load_model(hf), native(normalization_type="LN")
    other = cd.load_model(bridge)
    del hf, bridge
    gc.collect()
    refused(model, "the object that it was loaded from is gone; keep it, or load it again")
    refused(other, "is gone")
    rows = tokens()
    assert len(cd.run_circuit(other, task_of(rows), cd.Circuit.full(other.graph))) == len(rows)


def test_weights_that_have_changed(gpt2: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gpt2.folder, tmp_path / "model"))
    model = cd.load_model(folder)
    hf = random_model(gpt2.hf.config, seed=1)
    hf.save_pretrained(folder)
    refused(model, "has other weights by now; load it again")
    model = cd.load_model(hf)
    hf.transformer.wte.weight.data[3] += 1
    refused(model, "has other weights by now; load it again")


def test_adapters(llama: Tiny) -> None:
    held = with_adapters(llama.hf)
    refused(cd.load_model(held), r"does not take adapters; merge them first \(model.merge_and_unload\(\)\)")


def test_the_inside_of_a_bridge(gpt2: Tiny) -> None:
    bridge: Any = cd.load_model(gpt2.hf).to_bridge()
    inside = bridge.original_model
    refused(cd.load_model(inside), "the inside of a TransformerBridge; give load_model the bridge")


def test_what_transformerlens_cannot_wrap(gpt2: Tiny) -> None:
    prefixed = Prefixed(gpt2.hf)
    refused(cd.load_model(prefixed), "TransformerLens cannot wrap a Prefixed: ")
    hf = random_model(config_of(*CASES["falcon of groups"]))
    refused(cd.load_model(hf), "TransformerLens cannot wrap a FalconForCausalLM: ")


def test_what_transformerlens_computes_otherwise() -> None:
    """Its bridge of Falcon with ALiBi scales the positions' part of the scores otherwise."""
    hf = random_model(config_of(*CASES["falcon with alibi"]))
    refused(cd.load_model(hf), "TransformerLens computes a FalconForCausalLM otherwise .*no bridge of it")


def test_a_model_that_was_not_loaded(gpt2: Tiny) -> None:
    model = gpt2.model
    assert model.W_pos is not None
    made = assembled("made", model.graph, model.W_E, model.W_pos, model.blocks, model.final_norm, model.W_U)
    refused(made, "it has no bridge, because it was not loaded")


def test_habits_from_other_libraries_lead_to_it(gpt2: Tiny) -> None:
    for name in ("run_with_cache", "hooks", "generate"):
        with pytest.raises(cd.CircuitDiscoveryError, match=re.escape("model.to_bridge()")):
            getattr(gpt2.model, name)
        assert hasattr(gpt2.model.to_bridge(), name)
