"""The slow, obvious version of what the package computes, on TransformerBridge's own split hooks.

It knows nothing of the code under test but the names of sources and receivers (`Graph`). One edge set is one
forward with all hooks on; one derivative is two forwards; one ACDC decision is one forward. Several forwards
go as rows of one batch.

Facts it stands on (TransformerLens 4.3): `hook_result` holds a head's b_V W_O and not b_O; a block's input is
its `hook_resid_pre`, so layer 0's is the source `input`; the split hooks give k and v per group and come
before the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from circuitdiscovery.graph.graph import Graph

Hook = tuple[str, Callable[..., Tensor | None]]
Metric = Callable[[Tensor], Tensor]  # [N, V] logits -> [N]
# of several versions of the prompts in one forward: Python's calls cost more than the tiny models' products
_TOKENS = 2048


@dataclass(frozen=True)
class Reference:
    """A bridge with its split hooks on. N examples, T positions, D
    d_model, V vocabulary, S sources, R receivers.
    """

    bridge: Any
    graph: Graph
    dtype: torch.dtype
    # per layer, the weight and eps of a norm (by 1 + weight) of what its heads write together; none: no norm
    after_attention: tuple[tuple[Tensor, float], ...] = ()

    @classmethod
    def boot(cls, folder: Path, words: Path, dtype: torch.dtype = torch.float32) -> Reference:
        """The bridge of a model folder; `words` is any tokenizer's folder, which the bridge insists on."""
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(words)
        bridge = TransformerBridge.boot_transformers(
            str(folder), dtype=dtype, device="cpu", tokenizer=tokenizer
        )
        bridge.set_use_attn_result(True)
        bridge.set_use_split_qkv_input(True)
        bridge.set_use_hook_mlp_in(True)
        config: Any = bridge.original_model.config
        weights = load_file(folder / "model.safetensors")
        after = [
            (weights[f"model.layers.{layer}.post_attention_layernorm.weight"].to(dtype), config.rms_norm_eps)
            for layer in range(config.num_hidden_layers)
            if "gemma" in config.model_type
        ]
        return cls(bridge.eval(), graph_of(config), dtype, tuple(after))

    # -------------------------------------------------------------- running it

    @torch.no_grad()
    def _forward(self, tokens: Tensor, hooks: list[Hook]) -> Tensor:
        with (
            honest_float64() if self.dtype == torch.float64 else nullcontext(),
            self.bridge.hooks(fwd_hooks=hooks),
        ):
            return self.bridge(tokens)

    def _written(self, tokens: Tensor) -> tuple[Tensor, list[Hook]]:
        """An empty [S, N, T, D] and the hooks that fill it with what every source writes."""
        written = torch.zeros(
            len(self.graph.sources), *tokens.shape, self.bridge.cfg.d_model, dtype=self.dtype
        )

        def write_input(x: Tensor, hook: Any) -> None:
            written[0] = x

        def write_heads(x: Tensor, hook: Any, layer: int) -> None:
            for head in range(self.graph.n_heads):
                written[self.graph.source_index[f"a{layer}.h{head}"]] = x[:, :, head]

        def write_mlp(x: Tensor, hook: Any, layer: int) -> None:
            written[self.graph.source_index[f"m{layer}"]] = x

        hooks: list[Hook] = [("blocks.0.hook_resid_pre", write_input)]
        for layer in range(self.graph.n_layers):
            hooks.append((f"blocks.{layer}.attn.hook_result", _at(write_heads, layer)))
            hooks.append((f"blocks.{layer}.hook_mlp_out", _at(write_mlp, layer)))
        return written, hooks

    def run(self, tokens: Tensor, *, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(logits [N, T, V], what every source writes [S, N, T, D]); noise
        [N, T, D] is added to the token embeddings.
        """
        written, hooks = self._written(tokens)
        if noise is not None:
            hooks.append(("hook_embed", lambda x, hook: x + noise.to(x)))
        return self._forward(tokens, hooks), written

    def patched(self, tokens: Tensor, carried: Tensor, moved: np.ndarray) -> Tensor:
        """Logits [N, T, V] where each edge that is True in `moved` [S, R] carries
        `carried` [S, N, T, D], not the current output.

        Of several at once, [M, S, R], each a row of its own in the batch: [M, N, T, V].
        """
        several = moved[None] if moved.ndim == 2 else moved
        size = max(1, _TOKENS // tokens.numel())
        parts = [
            self._patched(tokens, carried.to(self.dtype), several[first : first + size])
            for first in range(0, len(several), size)
        ]
        return parts[0][0] if moved.ndim == 2 else torch.cat(parts)

    def _patched(self, tokens: Tensor, carried: Tensor, moved: np.ndarray) -> Tensor:
        current, hooks = self._written(tokens.repeat(len(moved), 1))

        def change(column: int) -> Tensor | float:
            sources = np.flatnonzero(moved[:, :, column].any(axis=0))
            if not len(sources):
                return 0.0
            total = 0.0
            for some, added in self._groups(sources):
                which = torch.from_numpy(moved[:, some, column]).to(self.dtype)  # [M, s]
                # [s, M, N, T, D]
                differences = carried[some, None] - current[some].unflatten(1, (len(moved), -1))
                total = total + added(
                    current, torch.einsum("ms,sm...->m...", which, differences).flatten(0, 1)
                )
            return total

        return self._forward(tokens.repeat(len(moved), 1), hooks + self._at_receivers(change)).unflatten(
            0, (len(moved), -1)
        )

    def _groups(self, sources: np.ndarray) -> Iterator[tuple[np.ndarray, Callable[[Tensor, Tensor], Tensor]]]:
        """(some of the sources, of [S, N, T, D] that all write and a change of what these write together: the
        change in the stream): the heads of a layer, where a norm of their sum follows, and all the others.
        """
        rest = np.ones(len(sources), dtype=bool)
        for layer in range(self.graph.n_layers):
            heads = self.graph.heads(layer)
            own = (heads.start <= sources) & (sources < heads.stop)
            if self.after_attention and own.any():
                weight, eps = self.after_attention[layer]

                def added(current: Tensor, change: Tensor, heads=heads, weight=weight, eps=eps) -> Tensor:
                    before = current[heads].sum(0)
                    both = [
                        x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * (1 + weight)
                        for x in (before, before + change)
                    ]
                    return both[1] - both[0]

                yield sources[own], added
                rest &= ~own
        if rest.any():
            yield sources[rest], lambda current, change: change

    def added(self, current: Tensor, rows: Sequence[int], changes: Tensor) -> Tensor:
        """[N, T, D]: what the stream changes by where sources, of [S, N, T, D] that all write, write
        changes[s] [N, T, D] more, together."""
        order, total = np.array(rows), torch.zeros_like(current[0])
        for some, added in self._groups(order):
            total = total + added(current, changes[torch.from_numpy(np.isin(order, some))].sum(0))
        return total

    def nudges(self, start: Tensor, tokens: Tensor, rows: Sequence[int], changes: Tensor) -> Tensor:
        """[M, N, T, D]: what the stream changes by where source rows[m] writes changes[m] [N, T, D] more, in the
        run from `input` = start."""
        if not self.after_attention:
            return changes
        current, hooks = self._written(tokens)
        self._forward(tokens, [("blocks.0.hook_resid_pre", lambda x, hook: start.to(x)), *hooks])
        current[0] = start
        return torch.stack(
            [self.added(current, [row], x[None]) for row, x in zip(rows, changes, strict=True)]
        )

    def nudged(self, start: Tensor, tokens: Tensor, receivers: list[str], nudges: Tensor) -> Tensor:
        """Logits [M, N, T, V] of the model from `input` = start [N, T, D], with nudges[m]
        [N, T, D] added to what receivers[m] reads.
        """
        rows: dict[int, list[int]] = {}
        for m, receiver in enumerate(receivers):
            rows.setdefault(self.graph.receiver_index[receiver], []).append(m)

        def change(column: int) -> Tensor | float:
            if column not in rows:
                return 0.0
            return (
                torch.zeros_like(nudges)
                .index_copy(0, torch.tensor(rows[column]), nudges[rows[column]])
                .flatten(0, 1)
            )

        starts = start.repeat(len(nudges), 1, 1)
        hooks: list[Hook] = [("blocks.0.hook_resid_pre", lambda x, hook: starts.to(x))]
        return self._forward(tokens.repeat(len(nudges), 1), hooks + self._at_receivers(change)).unflatten(
            0, (len(nudges), -1)
        )

    def _at_receivers(self, change: Callable[[int], Tensor | float]) -> list[Hook]:
        """Hooks that add change(column) [N, T, D] to what each receiver reads."""

        def read_heads(x: Tensor, hook: Any, layer: int, letter: str) -> Tensor:  # [N, T, heads or groups, D]
            return torch.stack(
                [x[:, :, i] + change(column) for i, column in enumerate(self.graph.columns(layer, letter))],
                dim=2,
            )

        def read(x: Tensor, hook: Any, column: int) -> Tensor:  # [N, T, D]
            return x + change(column)

        hooks: list[Hook] = []
        for layer in range(self.graph.n_layers):
            for letter in "qkv":
                hooks.append((f"blocks.{layer}.attn.hook_{letter}_input", _at(read_heads, layer, letter)))
            hooks.append((f"blocks.{layer}.hook_mlp_in", _at(read, self.graph.receiver_index[f"m{layer}"])))
        last = f"blocks.{self.graph.n_layers - 1}.hook_resid_post"
        return [*hooks, (last, _at(read, self.graph.receiver_index["logits"]))]

    # ----------------------------------------------------------- the contract

    def circuit(
        self,
        clean: Tensor,
        corrupted: Tensor,
        kept: np.ndarray,
        carried: Tensor,
        *,
        direction: str = "noising",
    ) -> Tensor:
        """Last-position logits [N, V] of a circuit (kept, [S, R]); `carried`
        [S, N, T, D] is what removed edges carry.

        noising: clean prompt, removed edges carry `carried`. denoising: corrupted prompt,
            kept edges carry the clean run's outputs.
        """
        if direction == "noising":
            return self.patched(clean, carried, self.graph.allowed & ~kept)[:, -1]
        return self.patched(corrupted, self.run(clean)[1], self.graph.allowed & kept)[:, -1]

    def with_graph(self, graph: Graph) -> Reference:
        """The same model, spoken of in another graph's names (merged receivers)."""
        return replace(self, graph=graph)


def graph_of(config: Any) -> Graph:
    """The graph of a Hugging Face config."""
    heads = config.num_attention_heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    return Graph(
        config.num_hidden_layers, heads, groups, parallel=getattr(config, "use_parallel_residual", False)
    )


def _at(hook: Callable[..., Tensor | None], *where: Any) -> Callable[..., Tensor | None]:
    return lambda x, hook_point=None, **_: hook(x, hook_point, *where)


@contextmanager
def honest_float64() -> Iterator[None]:
    """Hugging Face's norms and softmax cast to torch.float32 by name, whatever the
    model's dtype: let the names mean float64.
    """
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(Tensor, "float", Tensor.double),
    ):
        yield


# ------------------------------------------------------------------ ablations (contract, section 4)


def carried(reference: Reference, ablation: str, corrupted: Tensor) -> Tensor:
    """What removed edges carry, [S, N, T, D], where all prompts have one length;
    noise and random are drawn, so not here.

    A mean is that of all rows but the one itself.
    """
    written = reference.run(corrupted)[1]
    if ablation == "resample":
        return written
    if ablation in ("mean", "mean_all"):
        rows = range(len(corrupted))
        others = [written[:, [other for other in rows if other != row]] for row in rows]
        over = (1,) if ablation == "mean" else (1, 2)
        return torch.stack(
            [each.mean(over, keepdim=True).expand(-1, 1, written.shape[2], -1)[:, 0] for each in others],
            dim=1,
        )
    assert ablation == "zero"
    return torch.zeros_like(written)


# ------------------------------------------------------------------ metrics (contract, section 3)


def logit_diff(correct: Tensor, incorrect: Tensor) -> Metric:
    """Correct minus incorrect logit."""
    return lambda logits: torch.stack(
        [row[c] - row[i] for row, c, i in zip(logits, correct, incorrect, strict=True)]
    )


def kl_divergence(full: Tensor) -> Metric:
    """KL(full || patched) in nats, summed over the vocabulary; full is [N, V] logits."""

    def kl(logits: Tensor) -> Tensor:
        p, q = full.double().softmax(-1), logits.double().softmax(-1)
        return torch.stack([sum_of_terms(a, b) for a, b in zip(p, q, strict=True)])

    def sum_of_terms(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    return kl


# ------------------------------------------------------------------ searches (contract, section 6)


def exact(
    reference: Reference,
    clean: Tensor,
    carried: Tensor,
    edges: list[str],
    metric: Metric,
    *,
    higher_is_better: bool,
) -> dict[str, float]:
    """The damage of ablating each edge alone."""
    full = metric(reference.run(clean)[0][:, -1]).mean().item()
    sign = 1.0 if higher_is_better else -1.0
    patched = reference.patched(clean, carried, np.stack([reference.graph.mask([edge]) for edge in edges]))[
        :, :, -1
    ]
    return {
        edge: sign * (full - metric(logits).mean().item())
        for edge, logits in zip(edges, patched, strict=True)
    }


def edge_derivatives(
    reference: Reference, tokens: Tensor, start: Tensor, edges: list[str], change: Tensor, metric: Metric
) -> list[float]:
    """d/dt at 0 of the metric's mean, where an edge's receiver reads t * change [S, N, T,
    D] of its source more; central, float64.
    """
    step, size = 1e-5, max(1, _TOKENS // (2 * tokens.numel()))
    found: list[float] = []
    for some in (edges[first : first + size] for first in range(0, len(edges), size)):
        rows, columns = zip(*(reference.graph.index(edge) for edge in some), strict=True)
        nudges = torch.cat(
            [reference.nudges(start, tokens, rows, size * change[list(rows)]) for size in (step, -step)]
        )
        logits = reference.nudged(
            start, tokens, [reference.graph.receivers[column] for column in 2 * columns], nudges
        )[:, :, -1]
        up, down = torch.stack([metric(each).mean() for each in logits]).chunk(2)
        found += ((up - down) / (2 * step)).tolist()
    return found


def integrated(
    reference: Reference,
    clean: Tensor,
    carried: Tensor,
    edges: list[str],
    metric: Metric,
    alphas: list[float],
    *,
    end: Tensor | None = None,
    higher_is_better: bool = True,
) -> dict[str, float]:
    """The estimated damage of ablating each edge, its gradient averaged over runs
    from `input` = end + alpha (clean - end).

    The end is what is carried, or [N, T, D] another, where no run gives what is carried.
    alphas [1.0] is EAP, several are EAP-IG (inputs), [0.0, 1.0] is clean-corrupted.
    """
    current = reference.run(clean)[1]
    change = carried - current
    sign = -1.0 if higher_is_better else 1.0
    end = carried[0] if end is None else end
    starts = [end + alpha * (current[0] - end) for alpha in alphas]
    derivatives = np.mean(
        [edge_derivatives(reference, clean, start, edges, change, metric) for start in starts], axis=0
    )
    return dict(zip(edges, (sign * derivatives).tolist(), strict=True))


def acdc_order(graph: Graph) -> list[str]:
    """Every edge in the order in which ACDC tries it."""
    heads, groups = range(graph.n_heads), range(graph.n_kv_heads)
    receivers = ["logits"]
    for layer in reversed(range(graph.n_layers)):
        receivers.append(f"m{layer}")
        for letter in "vkq" if graph.split_qkv else [""]:
            grouped = graph.grouped and letter in "kv"
            suffix = f"<{letter}>" if letter else ""
            receivers += [
                f"a{layer}.{'kv' if grouped else 'h'}{i}{suffix}"
                for i in reversed(groups if grouped else heads)
            ]
    sources: list[str] = []
    for layer in reversed(range(graph.n_layers)):
        sources += [f"m{layer}", *(f"a{layer}.h{head}" for head in heads)]
    valid = set(graph.edges)
    return [
        f"{source}->{receiver}"
        for receiver in receivers
        for source in [*sources, "input"]
        if f"{source}->{receiver}" in valid
    ]


def naive_damages(
    reference: Reference,
    clean: Tensor,
    carried: Tensor,
    metric: Metric,
    kept: Collection[str],
    edges: Iterable[str] | None = None,
    *,
    higher_is_better: bool,
    order: Iterable[str] | None = None,
) -> dict[str, float]:
    """What each edge, or some, costs when ACDC by its definition tries it, having
    decided on those before it as `kept` says.

    If it decides each one as `kept` says, then by induction what it keeps
    is `kept`. A full forward for each state.
    """
    graph = reference.graph
    removed, states = np.zeros_like(graph.allowed), {}
    for edge in acdc_order(graph) if order is None else order:
        trial = removed | graph.mask([edge])
        states[edge] = removed, trial
        if edge not in kept:
            removed = trial
    tried = list(states if edges is None else edges)
    masks, which = np.unique(
        np.concatenate([np.stack(states[edge]) for edge in tried]), axis=0, return_inverse=True
    )
    values = np.array(
        [metric(logits).mean().item() for logits in reference.patched(clean, carried, masks)[:, :, -1]]
    )
    old, new = values[which.reshape(-1, 2)].T
    return dict(zip(tried, (old - new if higher_is_better else new - old).tolist(), strict=True))
