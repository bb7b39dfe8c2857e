"""Gate 5 at GPT-2 small's shape: from states sampled from a finished search,
a full forward per edge decides the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from reference import acdc_order
from torch import Tensor
from torch.nn.functional import kl_div

import circuitdiscovery as cd
from circuitdiscovery.engine.fast import PatchedRun

THRESHOLD = 0.02  # nats; some seventy edges stay: the lower, the longer each search
STATES = 300


@pytest.fixture(scope="module")
def hf() -> Any:
    """Random weights of GPT-2 small's twelve layers of twelve heads, strong enough for edges to matter; a
    quarter of its width and a small vocabulary, which the graph does not depend on."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_embd=192, bos_token_id=0, eos_token_id=0)).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 2:
                parameter.mul_(8 if "wte" in name or "wpe" in name else 5)
    return hf


@pytest.fixture(scope="module")
def model(hf: Any) -> Any:
    return cd.load_model((hf, None))


@pytest.fixture(scope="module")
def task() -> Any:
    tokens = torch.randint(2000, (2, 2, 3), generator=torch.Generator().manual_seed(1))
    return cd.Task.from_tokens(clean=tokens[0], corrupted=tokens[1], correct=[1, 2], incorrect=[3, 4])


@pytest.fixture(scope="module")
def found(model: Any, task: Any) -> dict[bool, tuple[Any, int]]:
    """With and without group testing the circuit, and how many alternatives were evaluated."""
    evaluated, branch = [0], PatchedRun.branch

    def counted(
        self: PatchedRun, mask: np.ndarray, state: Any, receiver: int, kept: np.ndarray
    ) -> torch.Tensor:
        evaluated[0] += len(kept)
        return branch(self, mask, state, receiver, kept)

    found: dict[bool, tuple[Any, int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatchedRun, "branch", counted)
        for group_testing in (False, True):
            evaluated[0] = 0
            found[group_testing] = (
                cd.acdc(model, task, threshold=THRESHOLD, group_testing=group_testing),
                evaluated[0],
            )
    return found


@pytest.mark.slow
def test_group_testing_evaluates_less_and_finds_most_of_the_edges(found: dict[bool, tuple[Any, int]]) -> None:
    (exactly, each), (grouped, together) = found[False], found[True]
    assert together < 0.6 * each
    assert len(grouped & exactly) > 0.8 * len(grouped | exactly)


class Slow:
    """GPT-2 with its edges, on the modules of Hugging Face's: a forward of every node, M circuits at once.

    N examples, T positions, D d_model, H heads, K d_head, S sources, R receivers.
    """

    def __init__(self, hf: Any, graph: Any, clean: Tensor, corrupted: Tensor) -> None:
        self.hf, self.graph, self.clean = hf, graph, clean
        zero = torch.zeros(len(graph.sources), 1, 1, 1)
        self.replacement = self._run(corrupted, zero, graph.allowed[None])[1][0]  # [S, N, T, D]

    def __call__(self, masks: np.ndarray) -> Tensor:
        """[M, S, R] kept edges -> [M, N, vocabulary] at the last position."""
        return torch.cat(
            [
                self._run(self.clean, self.replacement, part)[0]
                for part in np.array_split(masks, math.ceil(len(masks) / 20))
            ]
        )

    @torch.no_grad()
    def _run(self, tokens: Tensor, replacement: Tensor, masks: np.ndarray) -> tuple[Tensor, Tensor]:
        """(logits, [M, S, N, T, D] what every source writes less its replacement)."""
        body, graph = self.hf.transformer, self.graph
        start = body.wte(tokens) + body.wpe.weight[: tokens.shape[1]]
        change = start.new_zeros(len(masks), len(graph.sources), *start.shape)
        bases = replacement.expand(-1, *start.shape).cumsum(0)  # of the sources up to each
        change[:, 0], biases = start - replacement[0], torch.zeros(start.shape[-1])

        def read(columns: Any, before: int) -> Tensor:  # [M, receivers, N, T, D], of the sources before
            kept = torch.from_numpy(masks[:, :before, columns]).float().transpose(1, 2)
            return (
                bases[before - 1] + biases + (kept @ change[:, :before].flatten(2)).unflatten(-1, start.shape)
            )

        for layer, block in enumerate(body.h):
            heads, row = graph.heads(layer), graph.source_index[f"m{layer}"]
            size = (graph.n_heads, -1)
            weights, shifts = block.attn.c_attn.weight.chunk(3, dim=1), block.attn.c_attn.bias.chunk(3)
            q, k, v = (
                torch.einsum(
                    "mhntd,dhk->mhntk",
                    block.ln_1(read(graph.columns(layer, letter), heads.start)),
                    weight.unflatten(1, size),
                )
                + shift.unflatten(0, size)[:, None, None]
                for letter, weight, shift in zip("qkv", weights, shifts, strict=True)
            )
            pattern = (
                q @ k.mT / k.shape[-1] ** 0.5 + torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
            ).softmax(-1)
            written = torch.einsum(
                "mhntk,hkd->mhntd", pattern @ v, block.attn.c_proj.weight.unflatten(0, size)
            )
            change[:, heads] = written - replacement[heads]
            biases = biases + block.attn.c_proj.bias
            change[:, row] = (
                block.mlp(block.ln_2(read([graph.receiver_index[f"m{layer}"]], heads.stop)[:, 0]))
                - replacement[row]
            )
        final = read([graph.receiver_index["logits"]], len(graph.sources))[:, 0, :, -1]
        return self.hf.lm_head(body.ln_f(final)), change


@pytest.mark.slow
def test_gate_5_naive_decisions_agree_at_gpt2_small_s_shape(
    hf: Any, task: Any, found: dict[bool, tuple[Any, int]]
) -> None:
    circuit = found[False][0]
    graph = circuit.graph
    assert len(graph) == 32491
    assert 50 < len(circuit) < 500
    (batch,) = task.batches()
    slow = Slow(hf, graph, batch.clean, batch.corrupted)
    with torch.no_grad():
        full = hf(batch.clean).logits[:, -1].double().log_softmax(-1)

    order = [graph.index(edge) for edge in acdc_order(graph)]
    # edges into nodes that lead nowhere go without a forward; two of three states are from the others
    alive = np.asarray(circuit.mask.any(axis=1))
    weights = np.array([1.0 if _alive(graph, column, alive) else 0.1 for _, column in order])
    weights /= weights.sum()
    places = np.random.default_rng(0).choice(len(order), STATES, replace=False, p=weights)
    masks = np.repeat(circuit.mask[None], 2 * STATES, axis=0)  # of each state without and with the decision
    for state, at in enumerate(places):
        for row, column in order[at:]:
            masks[2 * state : 2 * state + 2, row, column] = True
        masks[2 * state + 1, *order[at]] = False
    logits = slow(np.concatenate([graph.allowed[None], masks])).double().log_softmax(-1)
    torch.testing.assert_close(logits[0], full, atol=1e-4, rtol=0)
    values = (
        kl_div(logits[1:], full.expand_as(logits[1:]), log_target=True, reduction="none").sum(-1).mean(-1)
    )
    damages = (values[1::2] - values[::2]).numpy()
    decided = np.abs(damages - THRESHOLD) > 1e-5
    kept = np.array([circuit.mask[order[at]] for at in places])
    assert ((damages >= THRESHOLD) == kept)[decided].all()
    assert (~decided).sum() < STATES // 10 and kept.any()


def _alive(graph: Any, column: int, alive: np.ndarray) -> bool:
    readers = graph.reader_nodes(graph.receivers[column])
    return not readers or any(alive[graph.source_index[node]] for node in readers)
