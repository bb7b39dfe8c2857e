"""End-to-end training: its distance beside the model run by hand, and what it is for."""

# pyright: reportOptionalMemberAccess=false, reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import circuitdiscovery as cd
from circuitdiscovery.features.end_to_end import Downstream
from circuitdiscovery.features.whole import KINDS

f = cd.features
TEXTS = ["The keys on the table are small.", "There is a dog by the door.", "The dog is old."]


@pytest.fixture(scope="module")
def toy() -> Any:
    return cd.load_model("toy")


def kl(plain: Tensor, other: Tensor) -> Tensor:
    expected = plain.log_softmax(-1)
    return (expected.exp() * (expected - other.log_softmax(-1))).sum(-1)


def by_hand(toy: Any, text: str, site: str, made: Tensor, streams: list[str]) -> Tensor:
    """[1 + streams, tokens]: KL and squared errors after every token but the first, with values in place."""

    def put(x: Tensor) -> Tensor:
        return torch.cat([x[:, :1], made[None].to(x)], 1)

    plain, edited = f.run(toy, text), f.run(toy, text, edits={site: put})
    errors = [(edited.values(name) - plain.values(name))[0, 1:].square().sum(-1) for name in streams]
    return torch.stack([kl(plain.values("logits"), edited.values("logits"))[0, 1:], *errors])


@pytest.mark.parametrize(
    ("site", "streams"),
    [("m2", ["resid3", "resid4"]), ("resid3", ["resid4"]), ("a1.z", ["resid2", "resid3", "resid4"])],
)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_distance_is_what_the_model_loses_over_what_it_loses_by_the_mean(
    toy: Any, site: str, streams: list[str], weight: float
) -> None:
    """Texts of different lengths together, and each alone through `run`."""
    acts = f.activations(toy, TEXTS, site)
    draw = torch.Generator().manual_seed(0)
    mean = acts.values.mean(0)
    after = Downstream(toy, acts, mean, weight, draw)
    made = acts.values + torch.randn(acts.values.shape, generator=draw) * acts.values.std()
    found = after.away(torch.arange(len(acts)))(made)
    sums = torch.zeros(2, 1 + len(streams))
    for number, text in enumerate(TEXTS):
        own = acts.rows == number
        for which, values in enumerate((made[own], mean.expand(int(own.sum()), -1))):
            sums[which] += by_hand(toy, text, site, values, streams).sum(-1)
    divergence, *errors = (sums[0] / sums[1]).tolist()
    expected = (divergence + weight * sum(errors) / len(errors)) / (1 + weight) if weight else divergence
    assert float(found) == pytest.approx(acts.d * expected, rel=1e-4)
    assert float(after.away(torch.arange(len(acts)))(acts.values)) == pytest.approx(0, abs=1e-4)


def test_prompts_run_apart_where_positions_depend_on_their_length() -> None:
    """Rotary positions that change with the prompt's length: nothing is lost by the true activations."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        initializer_range=0.3,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    model = cd.load_model(LlamaForCausalLM(config).eval())
    acts = f.activations(model, [torch.randint(50, (size,)).tolist() for size in (12, 40, 12)], "m0")
    mean = acts.values.mean(0)
    after = Downstream(model, acts, mean, 0.5, torch.Generator().manual_seed(0))
    every = torch.arange(len(acts))
    assert float(after.away(every)(acts.values)) == pytest.approx(0, abs=1e-4)
    assert float(after.away(every)(mean.expand(len(acts), -1))) == pytest.approx(acts.d, rel=1e-4)


def test_the_gradient_is_the_distances(toy: Any) -> None:
    """Central differences in float64, along a random direction."""
    model = cd.load_model("toy", dtype="float64")
    acts = f.activations(model, TEXTS, "m1")
    draw = torch.Generator().manual_seed(0)
    away = Downstream(model, acts, acts.values.mean(0), 0.5, draw).away(torch.arange(len(acts)))
    made = (acts.values + 0.1 * torch.randn(acts.values.shape, generator=draw)).requires_grad_()
    along = torch.randn(made.shape, generator=draw, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(away(made), [made])
    step = 1e-5
    difference = (away(made.detach() + step * along) - away(made.detach() - step * along)) / (2 * step)
    assert float((gradient * along).sum()) == pytest.approx(float(difference), rel=1e-5)


def test_batches_are_of_whole_prompts(toy: Any) -> None:
    acts = f.activations(toy, TEXTS, "m1")
    after = Downstream(toy, acts, acts.values.mean(0), 0.0, torch.Generator())
    for seed in range(5):
        rows = acts.rows[after.draw(8, torch.Generator().manual_seed(seed))]
        for number in rows.unique():
            assert int((rows == number).sum()) == int((acts.rows == number).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_end_to_end_loses_less_than_it_begins_with_and_resumes(toy: Any, kind: str, tmp_path: Path) -> None:
    acts = f.activations(toy, TEXTS, "m1")
    how: dict[str, Any] = {"kind": kind, "n": 32, "k": 4, "lr": 1e-2, "end_to_end": toy, "downstream": 0.5}
    few, many = f.train_sae(acts, **how, steps=2), f.train_sae(acts, **how, steps=20)
    begun, ended = (f.evaluate_sae(each, acts, model=toy, baselines=False) for each in (few, many))
    assert ended.kl_reconstruction < 0.5 * begun.kl_reconstruction

    def stop(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        f.train_sae(acts, **how, steps=20, state=tmp_path / "state", progress=stop)
    assert f.train_sae(acts, **how, steps=20, state=tmp_path / "state").digest == many.digest


def test_a_transcoder_end_to_end(toy: Any) -> None:
    source, target = f.activations(toy, TEXTS, "m1.normed"), f.activations(toy, TEXTS, "m1")
    how: dict[str, Any] = {"n": 32, "k": 4, "target": target, "end_to_end": toy, "lr": 5e-3}
    few, many = (f.train_sae(source, **how, steps=steps) for steps in (2, 20))
    begun, ended = (
        f.evaluate_sae(each, source, target=target, model=toy, baselines=False) for each in (few, many)
    )
    assert ended.kl_reconstruction < 0.5 * begun.kl_reconstruction


def test_at_equal_l0_the_model_loses_less_by_it_than_by_squared_error(toy: Any) -> None:
    """Braun et al. 2024, section 3.1; on prompts that neither was trained on."""
    task = cd.load_task("greater_than", toy, examples=64)
    acts = f.activations(toy, task, "m2", position="all")
    other = f.activations(toy, task.held_out, "m2", position="all")
    local, whole = (
        f.train_sae(acts, n=64, k=2, steps=50, lr=5e-3, end_to_end=model) for model in (None, toy)
    )
    near, far = (f.evaluate_sae(each, other, model=toy, baselines=False) for each in (local, whole))
    assert near.l0 == pytest.approx(far.l0, abs=0.05)
    assert far.kl_reconstruction.high < near.kl_reconstruction.low
    assert far.explained_variance < near.explained_variance


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"downstream": 1.0}, "downstream is a weight of at least 0, and needs end_to_end="),
        ({"downstream": -1.0}, "downstream is a weight of at least 0"),
    ],
)
def test_what_is_refused(toy: Any, given: dict[str, Any], told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.train_sae(f.activations(toy, TEXTS, "m1"), n=8, k=2, steps=2, **given)


def test_activations_that_have_no_model_to_run(toy: Any) -> None:
    acts = f.activations(toy, TEXTS, "m1")
    heads = f.activations(toy, TEXTS, "a1.h0")
    for given, model, told in (
        (acts.values, toy, "end_to_end needs the prompts, which a matrix does not have"),
        (heads, toy, "end_to_end cannot put a dictionary in the place of a1.h0"),
    ):
        with pytest.raises(cd.CircuitDiscoveryError, match=told):
            f.train_sae(given, n=8, k=2, steps=2, end_to_end=model)
