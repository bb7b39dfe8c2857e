"""What one layer of a transformer computes, with the few switches that
the supported architectures differ in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from circuitdiscovery.model.norm import Norm
from circuitdiscovery.model.positions import Alibi, Heads, Rotary
from circuitdiscovery.model.rows import index_of, project, project_some, take

Making = Callable[[Tensor, np.ndarray, np.ndarray, Tensor], None]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts by a module of [batch, tokens, d_model], its router included.

    The router chooses by what the MLP reads, so a patched run has a routing of its own.

    Args:
        module: Hugging Face's own.
        active: how many of its weights a token goes through.
        width: of the hidden layers of the experts that a token goes to, together.
    """

    module: nn.Module
    active: int
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., d_model], each token for itself."""
        out = self.module(x.reshape(1, -1, x.shape[-1]))
        return (out[0] if isinstance(out, tuple) else out).view(x.shape)

    @property
    def count(self) -> int:
        """How many experts there are."""
        return len(self.module.get_submodule("experts").get_parameter("down_proj"))

    def apart(self, x: Tensor, some: Sequence[int]) -> tuple[Tensor, Tensor]:
        """([len(some), ..., d_model], [..., d_model]): what some experts write, each times its weight where
        the router chose it, and the whole; an expert that all tokens go to belongs to the whole alone."""
        experts, seen = self.module.get_submodule("experts"), list[tuple[Tensor, ...]]()
        hook = experts.register_forward_pre_hook(lambda _, given: seen.append(given))
        try:
            whole = self(x)
        finally:
            hook.remove()
        ((tokens, chosen, weights),) = seen  # [tokens, d_model], [tokens, k] both
        each = []
        for number in some:
            rows, place = torch.where(chosen == number)
            own = experts(tokens[rows], chosen[rows, place][:, None], weights[rows, place][:, None])
            each.append(torch.zeros_like(tokens).index_add(0, rows, own))
        return torch.stack(each).unflatten(1, x.shape[:-1]), whole


@dataclass(frozen=True)
class Block:
    """One layer: its weights, and what it computes with them; every matrix is a view of
    the loaded tensor where its layout allows.

    Shapes: N examples, T positions, D d_model, H heads, h some of them, K d_head.
    """

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
    rotary: Rotary | None
    window: int | None  # how many positions a query sees, its own the last of them; None: all
    norm2: Norm
    W_in: Tensor | None  # [d_mlp, d_model]; None: a layer of attention alone
    b_in: Tensor | None  # [d_mlp]
    W_gate: Tensor | None  # [d_mlp, d_model]
    b_gate: Tensor | None  # [d_mlp]
    W_out: Tensor | None  # [d_model, d_mlp]
    b_out: Tensor | None  # [d_model]
    activation: Callable[[Tensor], Tensor]
    q_norm: Norm | None = None  # over d_head, of each query, before the rotary embedding
    k_norm: Norm | None = None  # the same of each key
    sinks: Tensor | None = None  # [heads]: the score of a key that has no value (gpt-oss)
    soft_cap: float | None = None  # c: a score s counts as c tanh(s / c) (Gemma 2)
    # of the queries of all heads together, and of the keys (OLMo 2): a receiver's own stream goes through all
    # heads, and it keeps its own part
    joint_q: Norm | None = None  # over heads * d_head
    joint_k: Norm | None = None  # over groups * d_head
    heads_norm: Norm | None = None  # of what all heads write together, b_O included
    mlp_norm: Norm | None = None  # of what the MLP writes
    experts: Experts | None = None  # in place of W_in, W_gate and W_out
    alibi: Alibi | None = None  # added to the scores

    def projection(self, letter: str) -> tuple[Tensor, Tensor | None]:
        """(weight [heads or groups, d_head, d_model], bias [heads or groups, d_head]) of "q", "k" or "v"."""
        return {"q": (self.W_Q, self.b_Q), "k": (self.W_K, self.b_K), "v": (self.W_V, self.b_V)}[letter]

    def norm_after(self, letter: str) -> Norm | None:
        """The norm that what all heads write ("a"), or what the MLP writes ("m"), goes through before it is
        added to the stream."""
        return {"a": self.heads_norm, "m": self.mlp_norm}[letter]

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where it computes."""
        return self.W_Q.device

    @property
    def holds_scores(self) -> bool:
        """Whether to attend holds the scores of all pairs of positions: no fused product has these."""
        return self.soft_cap is not None or self.sinks is not None

    @property
    def joint(self) -> bool:
        """Whether what a head reads depends on the other heads' weights."""
        return self.joint_q is not None or self.joint_k is not None

    def _joint(self, letter: str) -> Norm | None:
        return {"q": self.joint_q, "k": self.joint_k}.get(letter)

    def projected(self, letter: str, streams: Tensor) -> Tensor:
        """Each receiver's own stream, [R, ..., D] -> its query, key or value, [R, ..., K]."""
        weight, bias = self.projection(letter)
        if self._joint(letter) is not None:
            own = torch.arange(len(streams), device=streams.device)
            return self.heads_read(letter, streams)[own, own]
        out = torch.bmm(self.norm1(streams).flatten(1, -2), weight.mT).unflatten(1, streams.shape[1:-1])
        return out if bias is None else out + bias.view(len(bias), *(1,) * (out.dim() - 2), -1)

    def heads_read(self, letter: str, stream: Tensor) -> Tensor:
        """One stream for all heads, [..., D] -> the queries, keys or values, [heads or groups, ..., K]."""
        return self.heads_make(letter, self.norm1(stream))

    def heads_make(self, letter: str, normalised: Tensor) -> Tensor:
        """As `heads_read`, of a stream that is normalised already."""
        made, norm = project(normalised, *self.projection(letter)), self._joint(letter)
        if norm is None:
            return made
        together = made.movedim(0, -2)  # [..., heads or groups, K]
        return norm(together.flatten(-2)).unflatten(-1, together.shape[-2:]).movedim(-2, 0)

    def head_reads(self, letter: str, head: int, stream: Tensor) -> Tensor:
        """[..., D] -> [..., K]: the query, key or value of one head."""
        weight, bias = self.projection(letter)
        own = head * len(weight) // len(self.W_Q)
        if self._joint(letter) is not None:
            return self.heads_read(letter, stream)[own]
        return F.linear(self.norm1(stream), weight[own], None if bias is None else bias[own])

    def making(self, letter: str, some: np.ndarray) -> Making:
        """What some heads or groups make of normalised streams, for several calls.

        A call (x [m or 1, P, u, D], which, rows, out [h, m, P, K]) writes to out[rows[i]] what some[rows[i]]
        makes of stream which[i].
        """
        if self._joint(letter) is None:
            weight, bias = self.projection(letter)
            return partial(project_some, take(weight, some), None if bias is None else take(bias, some))

        def make(x: Tensor, which: np.ndarray, rows: np.ndarray, out: Tensor) -> None:
            for stream in np.unique(which):
                own = rows[which == stream]
                out[index_of(own)] = take(self.heads_make(letter, x[:, :, stream]), some[own])

        return make

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, position: Tensor | None = None, heads: Heads = None
    ) -> Tensor:
        """Causal attention per head, [h, N, T, K] each (k and v already repeated per head) -> [h, N, T, K];
        of all heads, or some.

        With [N] positions q is [h, N, 1, K], the query at that position
        of each example, and so is what comes out.
        """
        position = None if position is None else position.to(self.device)
        q, k = self._turned(q, k, position)
        if self.holds_scores:
            return self._weights(q, k, position, heads).to(v.dtype) @ v
        causal = position is None and (self.window is None or self.window >= k.shape[-2])
        if causal and self.alibi is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        seen = self._seen(k, position)
        if self.alibi is not None:  # what is added to the scores, in place of a choice of keys
            added = self.alibi(k.shape[-2], position, heads).to(q.dtype)
            seen = added.masked_fill(~seen, -torch.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)

    def pattern(self, q: Tensor, k: Tensor) -> Tensor:
        """The weight from each query to each key, of all heads: [H, N, T, K] both -> [H, N, T, T] float32."""
        q, k = self._turned(q, k, None)
        return self._weights(q, k, None, None).float()

    def written(self, z: Tensor, heads: Sequence[int] | None = None) -> Tensor:
        """What each head writes, from what it attends to: [h, ..., K] -> [h, ..., D]; all heads, or some."""
        weight = self.W_O if heads is None else self.W_O[list(heads)]
        return torch.bmm(z.flatten(1, -2), weight).unflatten(1, z.shape[1:-1])

    def add_written(self, out: Tensor, z: Tensor, heads: np.ndarray) -> None:
        """Add what some heads write, from [h, ..., K], to [h, P, D] in place."""
        if out.device == z.device:
            out.baddbmm_(z.flatten(1, -2), take(self.W_O, heads))
        else:
            out += torch.bmm(z.flatten(1, -2), take(self.W_O, heads)).to(out.device)

    def attended(self, z: Tensor) -> Tensor:
        """[N, T, D]: what all heads add to the stream together, from what they attend to, [H, N, T, K]."""
        return self._normed(self._together(z, self.b_O))

    def together(self, z: Tensor) -> Tensor:
        """[N, T, D]: what all heads write together, from what they attend to, [H, N, T, K]."""
        return self._together(z, None)

    def _together(self, z: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(z.permute(1, 2, 0, 3).flatten(2), self.W_O.flatten(0, 1).T, bias)

    @property
    def linear(self) -> bool:
        """Whether what heads write is added up in the stream as it is, with no norm of their sum."""
        return self.heads_norm is None

    def out_attention(self, x: Tensor) -> Tensor:
        """[..., D] that heads write together -> what that adds to the stream, where that is."""
        if self.b_O is None and self.heads_norm is None:
            return x
        return self._normed(self._biased(x)).to(x.device)

    def _biased(self, x: Tensor) -> Tensor:
        x = x.to(self.device)
        return x if self.b_O is None else x + self.b_O

    def out_change(self, x: Tensor, change: Tensor) -> Tensor:
        """[..., D]: what `out_attention` changes by where [..., D] that heads write together does."""
        return change if self.heads_norm is None else self.out_attention(x + change) - self.out_attention(x)

    def out_push(self, x: Tensor, change: Tensor) -> Tensor:
        """[..., D]: as `out_change`, to first order."""
        if self.heads_norm is None:
            return change
        return self.heads_norm.push_back(self._biased(x), change)

    def out_share(self, x: Tensor, term: Tensor) -> Tensor:
        """[..., D]: the share of one term of what heads write together in what that adds to the stream."""
        if self.heads_norm is None:
            return term
        return self.heads_norm.share(self._biased(x), term).to(term.device)

    def _normed(self, x: Tensor) -> Tensor:
        return x if self.heads_norm is None else self.heads_norm(x)

    def mlp_writes(self, stream: Tensor) -> Tensor:
        """[..., D]: what the MLP writes where it reads a stream, on the stream's device."""
        return self.mlp(self.norm2(stream)).to(stream.device)

    def sizes(self) -> tuple[int, int]:
        """How many weights a token goes through in the heads, and how many in the MLP."""
        heads = (self.W_Q, self.W_K, self.W_V, self.W_O)
        mlp = (each for each in (self.W_in, self.W_gate, self.W_out) if each is not None)
        active = sum(each.numel() for each in mlp) if self.experts is None else self.experts.active
        return sum(each.numel() for each in heads), active

    def weights(self) -> int:
        """How many weights its matrices have, those of every expert too."""
        heads, mlp = self.sizes()
        every = (
            None if self.experts is None else sum(each.numel() for each in self.experts.module.parameters())
        )
        return heads + (mlp if every is None else every)

    def mlp(self, x: Tensor) -> Tensor:
        """[..., D] normalised -> [..., D]."""
        out = self.mlp_before_norm(x)
        return out if self.mlp_norm is None else self.mlp_norm(out)

    def mlp_before_norm(self, x: Tensor) -> Tensor:
        """As `mlp`, without the norm of what it writes."""
        if self.experts is not None:
            return self.experts(x)
        assert self.W_out is not None
        return F.linear(self.hidden(x), self.W_out, self.b_out)

    def hidden(self, x: Tensor) -> Tensor:
        """[..., d_mlp]: the activations of the MLP's neurons, from what it reads, normalised."""
        assert self.W_in is not None
        hidden = F.linear(x, self.W_in, self.b_in)
        if self.W_gate is None:
            return self.activation(hidden)
        return self.activation(F.linear(x, self.W_gate, self.b_gate)) * hidden

    @property
    def d_head(self) -> int:
        """The width of a head."""
        return self.W_Q.shape[1]

    @property
    def d_mlp(self) -> int:
        """The width of the MLP's hidden layer, of all experts that a token goes to; 0 where there is none."""
        if self.experts is not None:
            return self.experts.width
        return 0 if self.W_in is None else len(self.W_in)

    def _weights(self, q: Tensor, k: Tensor, position: Tensor | None, heads: Heads) -> Tensor:
        """As `_scores`: the weight of each key, what a sink takes left out."""
        scores = self._scores(q, k, position, heads)
        if self.sinks is None:
            return torch.softmax(scores, -1)
        sinks = self.sinks if heads is None else take(self.sinks, np.asarray(heads))
        sinks = sinks.to(scores.dtype)[:, None, None, None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat([scores, sinks], -1), -1)[..., :-1]

    def _scores(self, q: Tensor, k: Tensor, position: Tensor | None, heads: Heads) -> Tensor:
        """[h, N, T, T], or [h, N, 1, T] at [N] positions; float32 at
        least, -inf where a query does not look."""
        scores = q @ k.transpose(-1, -2)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * self.scale
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        if self.alibi is not None:
            scores = scores + self.alibi(k.shape[-2], position, heads)
        return scores.masked_fill(~self._seen(k, position), -torch.inf)

    def _turned(self, q: Tensor, k: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor]:
        q = q if self.q_norm is None else self.q_norm(q)
        k = k if self.k_norm is None else self.k_norm(k)
        if self.rotary is None:
            return q, k
        rotary = self.rotary.at(k.shape[-2])
        return rotary(q, None if position is None else position[:, None]), rotary(k)

    def _seen(self, k: Tensor, position: Tensor | None) -> Tensor:
        """Which keys each query sees: [T, T], or [N, 1, T] at [N] positions."""
        places = torch.arange(k.shape[-2], device=k.device)
        at = places[:, None] if position is None else position[:, None, None]
        seen = places <= at
        return seen if self.window is None else seen & (places > at - self.window)
