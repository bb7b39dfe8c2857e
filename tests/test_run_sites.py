"""A run with editable sites, beside Hugging Face's own hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from test_families import CASES, config_of
from tiny import ARCHITECTURES, VOCABULARY, random_model, random_prompts
from torch import Tensor

import circuitdiscovery as cd

f = cd.features

# Hugging Face's names of a layer's parts that the tested families have
ATTENTION = ("attn", "self_attn", "attention", "self_attention")
OUT = ("c_proj", "o_proj", "dense", "out_proj")
FAMILIES = ("gemma2", "olmo2", "cohere", "granite", "bloom", "mixtral", "gpt-oss", "phi", "falcon of groups")
POST_NORMS = ("gemma2", "gemma3", "olmo2")
Hook = Callable[[Tensor], Tensor]


def part(module: Any, names: tuple[str, ...]) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def layers(network: Any) -> Any:
    base = network.base_model
    return base.h if hasattr(base, "h") else base.layers


@contextmanager
def hooked(module: Any, edit: Hook, *, before: bool = False) -> Iterator[None]:
    """A module's output, or its first input, through a function."""

    def after(_: Any, given: Any, out: Any) -> Any:
        return (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)

    def first(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    if before:
        handle = module.register_forward_pre_hook(first, with_kwargs=True)
    else:
        handle = module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def networks() -> list[str]:
    return [*ARCHITECTURES, *(name for name in FAMILIES if name in CASES)]


@pytest.fixture(scope="module", params=networks())
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any]:
    """(name, Hugging Face's model, ours)."""
    if request.param in ARCHITECTURES:
        from tiny import tiny_config

        network = random_model(tiny_config(request.param))
    else:
        network = random_model(config_of(*CASES[request.param]))
    return request.param, network, cd.load_model((network, None))


TOKENS = random_prompts(VOCABULARY, 3, 7).clean


def seen(network: Any, module: Any, *, before: bool = False) -> Tensor:
    kept: list[Tensor] = []
    with hooked(module, lambda x: (kept.append(x.clone()), x)[1], before=before), torch.no_grad():
        network(TOKENS)
    return kept[-1]


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))


def places(name: str, network: Any) -> Iterator[tuple[str, Any, bool]]:
    """(site, module, whether its input); what a site has is `unit_at` times what the module has."""
    blocks = layers(network)
    for layer in range(len(blocks)):
        yield f"resid{layer}", blocks[layer], True
    yield f"resid{len(blocks)}", blocks[-1], False
    block = blocks[1]
    attention = part(block, ATTENTION)
    yield "a1.z", part(attention, OUT), True
    if name in POST_NORMS:
        after = block.post_attention_layernorm
        yield "a1", after, False
        yield "a1.inner", attention, False
        yield "m1", block.post_feedforward_layernorm, False
        yield "m1.inner", block.mlp, False
    elif name not in ("bloom",):  # whose modules add the stream themselves
        yield "a1", attention, False
        yield "m1", block.mlp, False
        yield "a1.inner", attention, False
        yield "m1.inner", block.mlp, False
    down = next((getattr(block.mlp, each) for each in ("c_proj", "down_proj", "dense_4h_to_h", "fc2")
                 if hasattr(block.mlp, each)), None)  # fmt: skip
    if down is not None:
        yield "m1.neurons", down, True
    if name not in ("mixtral", "gpt-oss", "bloom"):
        yield "m1.normed", block.mlp, True
    if name == "granite":
        yield "m1.stream", block.post_attention_layernorm, True


def unit_at(network: Any, site: str) -> float:
    """What Granite multiplies what a module gives with before it is added to the stream."""
    return getattr(network.config, "residual_multiplier", 1.0) if site in ("a1", "m1") else 1.0


def test_what_is_read_and_replaced_is_hugging_faces(pair: tuple[str, Any, Any]) -> None:
    """Each site's values, and the logits with the site's values shifted and halved."""
    name, network, model = pair
    shift = torch.Generator().manual_seed(1)
    plain = f.run(model, TOKENS)
    with torch.no_grad():
        close(plain.logits, network(TOKENS).logits[:, -1])
        close(plain.values("logits"), network(TOKENS).logits)
    count = 0
    for site, module, before in places(name, network):
        expected, unit = seen(network, module, before=before), unit_at(network, site)
        close(plain.values(site).flatten(), unit * expected.flatten())
        add = torch.randn(expected.shape[-1], generator=shift)

        def changed(x: Tensor, add: Tensor = add) -> Tensor:
            return x / 2 + add

        own = add / unit
        with hooked(module, lambda x, own=own: x / 2 + own, before=before), torch.no_grad():
            expected = network(TOKENS).logits[:, -1]
        close(f.run(model, TOKENS, edits={site: changed}).logits, expected)
        count += 1
    assert count >= 6


def test_one_head_and_one_neuron(pair: tuple[str, Any, Any]) -> None:
    """A head is its columns of what the output matrix reads; a neuron is one of what the second matrix reads."""
    _, network, model = pair
    d_head, attention = model.blocks[1].d_head, part(layers(network)[1], ATTENTION)

    def without_head(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 2 * d_head : 3 * d_head] = 0
        return x

    with hooked(part(attention, OUT), without_head, before=True), torch.no_grad():
        expected = network(TOKENS).logits[:, -1]
    close(f.run(model, TOKENS, edits={"a1.h2": 0.0}).logits, expected)
    if model.blocks[1].W_in is None:
        with pytest.raises(cd.CircuitDiscoveryError, match="mixture of experts: it has no neurons"):
            f.run(model, TOKENS, edits={"m1/n5": 0.0})
        return
    found = f.run(model, TOKENS, edits={"m1/n5": 3.0})
    neurons = f.run(model, TOKENS).values("m1.neurons").clone()
    neurons[..., 5] = 3.0
    close(found.logits, f.run(model, TOKENS, edits={"m1.neurons": neurons}).logits)
    assert (found.values("m1/n5") == 3.0).all()


def test_generation_is_hugging_faces(tiny_gpt2: Any) -> None:
    network, model = tiny_gpt2
    expected = network.generate(
        TOKENS, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(TOKENS), pad_token_id=0,
        eos_token_id=VOCABULARY + 1,
    )  # fmt: skip
    assert torch.equal(f.run(model, TOKENS, generate=4).generated, expected[:, TOKENS.shape[1] :])
    with hooked(network.base_model.h[1].mlp, lambda x: x * 0):
        expected = network.generate(
            TOKENS, max_new_tokens=4, do_sample=False, attention_mask=torch.ones_like(TOKENS),
            pad_token_id=0, eos_token_id=VOCABULARY + 1,
        )  # fmt: skip
    assert torch.equal(
        f.run(model, TOKENS, generate=4, edits={"m1": 0}).generated, expected[:, TOKENS.shape[1] :]
    )


@pytest.fixture(scope="module")
def tiny_gpt2() -> Any:
    from tiny import tiny_config

    network = random_model(tiny_config("gpt2"))
    return network, cd.load_model((network, None))


def test_prompts_of_several_lengths_run_as_if_alone(tiny_gpt2: Any) -> None:
    _, model = tiny_gpt2
    rows = [[5, 6, 7], [8, 9], [3, 2, 1], [4]]
    together = f.run(model, rows, batch_size=1, edits={"resid1": lambda x: x * 1.5})
    for row, logits, values in zip(rows, together.logits, together.values("m2"), strict=True):
        alone = f.run(model, [row], edits={"resid1": lambda x: x * 1.5})
        close(logits, alone.logits[0])
        close(values, alone.values("m2")[0])


@pytest.mark.parametrize("site", ["m1/n5", "a1.h2", "m1"])
def test_what_is_given_holds_no_more_than_it_shows(tiny_gpt2: Any, site: str) -> None:
    """One of many units does not keep the others' values."""
    found = f.run(tiny_gpt2[1], [[1, 2, 3, 4]] * 3 + [[5, 6, 7]] * 2).values(site)
    held = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
    assert sum(held.values()) == sum(each.numel() * each.element_size() for each in found)


def test_a_function_of_two_arguments_knows_the_prompts(tiny_gpt2: Any) -> None:
    _, model = tiny_gpt2
    rows = [[5, 6, 7], [8, 9], [3, 2, 1]]
    add = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    found = f.run(model, rows, edits={"resid2": lambda x, some: x + add[some][:, None]})
    for row, vector, logits in zip(rows, add, found.logits, strict=True):
        close(logits, f.run(model, row, edits={"resid2": lambda x, v=vector: x + v}).logits[0])


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({"resid9": 0.0}, "has no site 'resid9'; sites are resid0 ... resid3"),
        ({"a1.h4": 0.0}, "has no site 'a1.h4'"),
        ({"m1/n999": 0.0}, "m1 has no neuron 999: it has 128"),
        ({"m1": torch.zeros(7)}, r"edits\['m1'\] gives \[7\]; there it must be of shape \[3, 7, 32\]"),
        ({"m1": lambda x: "no"}, r"edits\['m1'\] gives 'no'; there it must"),
        (["m1"], "edits must be a mapping"),
    ],
)
def test_what_cannot_be_edited(tiny_gpt2: Any, edits: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.run(tiny_gpt2[1], TOKENS, edits=edits)


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ([], "prompts: there is no prompt"),
        ([[]], "prompts, row 0: must be token ids, one at least"),
        ([[1], [500]], "prompts, row 1: .*token 500 is not in its vocabulary"),
        (["a text"], "has no tokenizer for texts"),
        (5, "prompts must be a text"),
        ([[1] * 65], "longer than its 64 positions"),
    ],
)
def test_what_cannot_be_run(tiny_gpt2: Any, prompts: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.run(tiny_gpt2[1], prompts)


def test_unknown_words_are_errors() -> None:
    toy = cd.load_model("toy")
    with pytest.raises(cd.CircuitDiscoveryError, match="text 1: the tokenizer does not know a word"):
        f.run(toy, ["The dog is old.", "The xylophone is old."])
    with pytest.raises(cd.CircuitDiscoveryError, match="text 0: the tokenizer makes no token"):
        f.run(toy, [""])


@pytest.mark.parametrize("name", ["qwen3", "granite"])
def test_what_a_vector_writes_onto_the_logits_is_of_hugging_faces_stream(name: str) -> None:
    """Its activation times its share in the last norm, onto the difference of the answers' unembeddings."""
    network, prompts = random_model(config_of(*CASES[name])), random_prompts(VOCABULARY, 3, 7)
    model, vector = (
        cd.load_model((network, None)),
        torch.randn(32, generator=torch.Generator().manual_seed(2)),
    )
    (found,) = f.top_activations(model, [vector], prompts.task, top=1, at="resid1")
    there, last = (seen(network, layers(network)[i])[:, -1] for i in (0, -1))
    deviation = last.square().mean(-1).add(network.config.rms_norm_eps).sqrt()
    unit = vector / vector.norm()
    written = (there @ unit / deviation)[:, None] * unit * network.model.norm.weight
    rows = network.lm_head.weight[prompts.correct] - network.lm_head.weight[prompts.incorrect]
    expected = (written * rows).sum(-1).mean() / getattr(network.config, "logits_scaling", 1.0)
    assert float(found.attribution) == pytest.approx(float(expected.detach()), rel=1e-4)
