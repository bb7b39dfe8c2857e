"""A transformer as the forward needs it: embeddings, blocks, and what people ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.block import Block
from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.source import Source

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class _NoAttribute(CircuitDiscoveryError, AttributeError):
    """An attribute that another library's models have, with ours; still an
    AttributeError, so that `hasattr` works.
    """


_OURS = {
    "cfg": "its sizes are model.n_layers, .n_heads, .d_model and .vocab_size, its edges model.graph",
    "to": "give load_model the device and the dtype",
    "cuda": 'give load_model device="cuda"',
    "cpu": 'give load_model device="cpu"',
    "half": 'give load_model dtype="float16"',
    "bfloat16": 'give load_model dtype="bfloat16"',
    "float": 'give load_model dtype="float32"',
    "run_with_cache": "model.to_bridge() has; explain(model, task, circuit) says what nodes do",
    "generate": "it is for circuits alone; model.to_bridge() generates",
    "to_tokens": "encode with model.tokenizer",
}
_OURS |= {"config": _OURS["cfg"], "to_str_tokens": _OURS["to_tokens"], "hooks": _OURS["run_with_cache"]}


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded transformer (see `load_model`). Models of equal digests have the same weights."""

    name: str
    digest: str  # of the weight tensors' names, shapes and bytes
    tokenizer: Any  # a Hugging Face tokenizer, or None
    graph: Graph
    W_E: Tensor  # [vocabulary, d_model]
    W_pos: Tensor | None  # [n_positions, d_model]
    blocks: tuple[Block, ...]
    final_norm: Norm
    W_U: Tensor  # [vocabulary, d_model]
    b_U: Tensor | None = None  # [vocabulary]
    embed_scale: float = 1.0  # of the token embeddings
    logit_scale: float = 1.0  # of the logits
    logit_cap: float | None = None  # c: a logit x is c tanh(x / c) (Gemma 2)
    embed_norm: Norm | None = None  # of the token embeddings (BLOOM)
    longest: int | None = None  # prompt that its own forward computes, where that has a table (GPT-J, MPT)
    # r: the model's own stream is r times ours, and adds r times what layers write (Granite)
    stream_unit: float = 1.0
    # which of Hugging Face's modules, attention ("a") or MLP ("m"), add the stream to what they write
    adding: str = ""
    source: Source | None = None  # what it was loaded from

    @property
    def device(self) -> torch.device:
        """Where the weights are, but for layers that `load_model` placed elsewhere."""
        return self.W_E.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Where the layers are, each device once; runs begin and end on `device`."""
        return tuple(dict.fromkeys([self.device, *(block.device for block in self.blocks)]))

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are."""
        return self.W_E.dtype

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.graph.n_layers

    @property
    def n_heads(self) -> int:
        """The number of heads in a layer."""
        return self.graph.n_heads

    @property
    def d_model(self) -> int:
        """The residual stream's width."""
        return self.W_E.shape[1]

    @property
    def unembedding_size(self) -> int:
        """How many weights make the logits."""
        return self.W_U.numel()

    @property
    def stream_norm(self) -> Norm:
        """The last norm, of the stream as the model itself has it."""
        return replace(self.final_norm, eps=self.final_norm.eps * self.stream_unit**2)

    def embedded(self, rows: Tensor) -> Tensor:
        """[..., D] token embeddings -> the same as the stream has them, scaled or normalised."""
        if self.embed_scale != 1.0:
            rows = rows * torch.tensor(self.embed_scale, dtype=rows.dtype, device=rows.device)
        return rows if self.embed_norm is None else self.embed_norm(rows)

    def logits_of(self, normalised: Tensor) -> Tensor:
        """[..., D] normalised streams -> [..., vocabulary]."""
        logits = F.linear(normalised, self.W_U, self.b_U)
        logits = logits if self.logit_scale == 1.0 else logits * self.logit_scale
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap

    def logit_terms(self, normalised: Tensor) -> Tensor:
        """[..., vocabulary]: what terms of the normalised stream, [..., D],
        add to the logits before they are capped.
        """
        return F.linear(normalised, self.W_U) * self.logit_scale

    def logit_directions(self, tokens: Sequence[int]) -> Tensor:
        """[len(tokens), D]: what the normalised stream is multiplied with for the logits of some tokens."""
        return self.W_U[list(tokens)] * self.logit_scale

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.W_U.shape[0]

    @property
    def n_positions(self) -> int | None:
        """How many positions it has, learnt or in a table; None where it has neither."""
        return self.longest if self.W_pos is None else len(self.W_pos)

    @property
    def max_length(self) -> int | None:
        """The longest prompt in tokens that the forward is right for; None where nothing bounds it."""
        return self.n_positions

    def check_weights(self) -> None:
        """Refuse a model whose weights were changed in the object that it was loaded from."""
        if self.source is not None:
            self.source.check()

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse [..., position] token ids that this model cannot read."""
        length = tokens.shape[-1]
        if self.max_length is not None and length > self.max_length:
            raise CircuitDiscoveryError(
                f"{self.name}: a prompt of {length} tokens is longer than its {self.max_length} positions"
            )
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= len(self.W_E)):
            worst = int(tokens.max()) if int(tokens.max()) >= len(self.W_E) else int(tokens.min())
            raise CircuitDiscoveryError(
                f"{self.name}: token {worst} is not in its vocabulary of {len(self.W_E)} tokens"
            )

    @guarded
    def to_bridge(self) -> TransformerBridge:
        """TransformerLens' model of the same weights, to go on with its hooks.

        What was loaded from a TransformerBridge gives back that bridge. A Hugging Face model that was loaded
        is wrapped, and not changed: the bridge has modules of its own around the same weights, but for joint
        matrices of queries, keys and values, which TransformerLens copies in some families (GPT-NeoX). Of a
        folder, a hub name or a file the weights are read once more, in this model's dtype and onto its
        device, and are then held twice. To hold them once, load the bridge (`load_model(model.to_bridge())`)
        and drop this model.

        Returns:
            The bridge, in evaluation mode, with a copy of the tokenizer; a new one at each call, but for what
            was a bridge. Its logits are compared with this model's before it is handed out.

        Raises:
            CircuitDiscoveryError: the object that was loaded is gone (only the user keeps it alive), has
                adapters, or has other weights by now; TransformerLens has no such model, or computes it
                otherwise.

        >>> from circuitdiscovery import load_model
        >>> load_model("toy").to_bridge().cfg.n_layers
        4
        """
        from circuitdiscovery.model.bridge import bridge_of

        return bridge_of(self)

    if not TYPE_CHECKING:  # which would take any attribute for one

        def __getattr__(self, name: str) -> Any:
            """What is not there, with what is."""
            if name in _OURS:
                raise _NoAttribute(f"a Model has no {name!r}: {_OURS[name]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        """A model is run by `run_circuit`."""
        raise CircuitDiscoveryError(
            "a Model is not called: run_circuit(model, task, Circuit.full(model.graph)) gives the logits "
            "of the whole model on a task"
        )

    def __repr__(self) -> str:
        graph = self.graph
        return (
            f"Model({self.name!r}, layers={graph.n_layers}, heads={graph.n_heads}, "
            f"d_model={self.d_model}, edges={len(graph)})"
        )
