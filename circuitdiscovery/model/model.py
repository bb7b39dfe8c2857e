"""A transformer as the forward needs it: its weights, and the few switches that the supported architectures differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.graph.graph import Graph


@dataclass(frozen=True)
class Norm:
    """LayerNorm, RMSNorm or none (a weight of ones and no bias) over d_model."""

    weight: Tensor  # [d_model]
    bias: Tensor | None  # [d_model]
    eps: float
    kind: Literal["layer", "rms", "none"]

    @property
    def centred(self) -> bool:
        """Whether the mean over d_model is taken away."""
        return self.kind == "layer"

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model], normalised, scaled and shifted."""
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        if self.kind == "rms":
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return x.view_as(x)  # a tensor of its own, so that its gradient is what its readers alone send back

    def jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(x' [..., d_model], 1 / s [..., 1]) of the Jacobian g -> (centre(g) - x' mean(g x')) / s at a stream, before the weight.

        x' is the normalised stream and s its deviation; without a norm they are 0 and 1.
        """
        if self.kind == "none":
            return torch.zeros_like(x), torch.ones_like(x[..., :1])
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * inverse, inverse


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding of the first `2 * len(frequencies)` dimensions of a head (Su et al. 2021, arXiv 2104.09864)."""

    frequencies: Tensor  # [rotary / 2], float32 as in Hugging Face
    scaling: float  # of cos and sin (YaRN's attention factor)

    def __call__(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """[..., position, d_head] -> the same, each position's pairs turned by its angles; positions are 0, 1, ... unless given."""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        angles = positions.float()[..., None] * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)  # [..., position, rotary]
        cos, sin = (angles.cos() * self.scaling).to(x.dtype), (angles.sin() * self.scaling).to(x.dtype)
        turned, rest = x.split([angles.shape[-1], x.shape[-1] - angles.shape[-1]], dim=-1)
        first, second = turned.chunk(2, dim=-1)
        turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


@dataclass(frozen=True)
class Block:
    """One layer's weights; every matrix is a view of the loaded tensor where its layout allows."""

    norm1: Norm
    W_Q: Tensor  # [heads, d_head, d_model]
    W_K: Tensor  # [groups, d_head, d_model]
    W_V: Tensor  # [groups, d_head, d_model]
    b_Q: Tensor | None  # [heads, d_head]
    b_K: Tensor | None  # [groups, d_head]
    b_V: Tensor | None  # [groups, d_head]
    W_O: Tensor  # [heads, d_head, d_model]
    b_O: Tensor | None  # [d_model]
    scale: float  # of the attention scores
    norm2: Norm
    W_in: Tensor  # [d_mlp, d_model]
    b_in: Tensor | None  # [d_mlp]
    W_gate: Tensor | None  # [d_mlp, d_model]
    b_gate: Tensor | None  # [d_mlp]
    W_out: Tensor  # [d_model, d_mlp]
    b_out: Tensor | None  # [d_model]

    def projection(self, letter: str) -> tuple[Tensor, Tensor | None]:
        """(weight [heads or groups, d_head, d_model], bias [heads or groups, d_head]) of "q", "k" or "v"."""
        return {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[letter]


class _NoAttribute(CircuitDiscoveryError, AttributeError):
    """An attribute that another library's models have, with ours; still an AttributeError, so that `hasattr` works."""


_OURS = {
    "cfg": "its sizes are model.n_layers, .n_heads, .d_model and .vocab_size, its edges model.graph",
    "to": "give load_model the device and the dtype",
    "cuda": 'give load_model device="cuda"',
    "cpu": 'give load_model device="cpu"',
    "half": 'give load_model dtype="float16"',
    "bfloat16": 'give load_model dtype="bfloat16"',
    "float": 'give load_model dtype="float32"',
    "run_with_cache": "explain(model, task, circuit) says what nodes do",
    "generate": "it is for circuits alone; generate with the Hugging Face model",
    "to_tokens": "encode with model.tokenizer",
}
_OURS |= {"config": _OURS["cfg"], "to_str_tokens": _OURS["to_tokens"], "hooks": _OURS["run_with_cache"]}


@dataclass(frozen=True)
class Model:
    """A loaded transformer (see `load_model`)."""

    name: str
    digest: str  # of the weight tensors' names, shapes and bytes
    tokenizer: Any  # a Hugging Face tokenizer, or None
    graph: Graph
    W_E: Tensor  # [vocabulary, d_model]
    W_pos: Tensor | None  # [n_positions, d_model]
    blocks: tuple[Block, ...]
    final_norm: Norm
    W_U: Tensor  # [vocabulary, d_model]
    activation: Callable[[Tensor], Tensor]
    rotary: Rotary | None
    window: int | None  # the shortest sliding window of any layer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.W_E.device

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
    def vocab_size(self) -> int:
        """The number of tokens."""
        return self.W_U.shape[0]

    @property
    def n_positions(self) -> int | None:
        """How many positions it has learnt; None where positions are rotary."""
        return None if self.W_pos is None else len(self.W_pos)

    @property
    def max_length(self) -> int | None:
        """The longest prompt in tokens that the forward is right for; None where nothing bounds it."""
        return min((n for n in (self.window, self.n_positions) if n is not None), default=None)

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse [..., position] token ids that this model cannot read."""
        length = tokens.shape[-1]
        if self.window is not None and length > self.window:
            raise CircuitDiscoveryError(
                f"{self.name}: a sliding window of {self.window} tokens is shorter than the prompt of {length}, which is not supported"
            )
        if self.W_pos is not None and length > len(self.W_pos):
            raise CircuitDiscoveryError(f"{self.name}: a prompt of {length} tokens is longer than its {len(self.W_pos)} positions")
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= len(self.W_E)):
            worst = int(tokens.max()) if int(tokens.max()) >= len(self.W_E) else int(tokens.min())
            raise CircuitDiscoveryError(f"{self.name}: token {worst} is not in its vocabulary of {len(self.W_E)} tokens")

    if not TYPE_CHECKING:  # which would take any attribute for one

        def __getattr__(self, name: str) -> Any:
            """What is not there, with what is."""
            if name in _OURS:
                raise _NoAttribute(f"a Model has no {name!r}: {_OURS[name]}")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        """A model is run by `run_circuit`."""
        raise CircuitDiscoveryError(
            "a Model is not called: run_circuit(model, task, Circuit.full(model.graph)) gives the logits of the whole model on a task"
        )

    def __repr__(self) -> str:
        graph = self.graph
        return f"Model({self.name!r}, layers={graph.n_layers}, heads={graph.n_heads}, d_model={self.d_model}, edges={len(graph)})"
