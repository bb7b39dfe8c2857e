"""The parts of a `Block`, of the linear layers that a family keeps them as."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

from torch import Tensor

from circuitdiscovery.model.architectures.architecture import Weights
from circuitdiscovery.model.norm import Norm

Linear = tuple[Tensor, Tensor | None]  # weight [out, in], and bias [out] where there is one


def heads(weight: Tensor, d_head: int) -> Tensor:
    """[heads * d_head, d_model] -> [heads, d_head, d_model]; biases alike."""
    return weight.unflatten(0, (-1, d_head))


def optional_heads(bias: Tensor | None, d_head: int) -> Tensor | None:
    """As `heads`, of a bias that there may not be."""
    return None if bias is None else heads(bias, d_head)


def norms(
    norm: Callable[[Any, Weights, str], Norm], config: Any, weights: Weights, at: str, *names: str
) -> dict[str, Norm]:
    """The two norms of a `Block`, or one that both attention and MLP read through."""
    found = [norm(config, weights, at + name) for name in names]
    return {"norm1": found[0], "norm2": found[-1]}


def linears(weights: Weights, at: str, *names: str) -> tuple[Linear, ...]:
    """The linear layers of these names, behind a prefix."""
    return tuple((weights[f"{at}{name}.weight"], weights.get(f"{at}{name}.bias")) for name in names)


def grouped(joint: Linear, n_heads: int, groups: int, d_head: int) -> tuple[Linear, ...]:
    """Queries, keys and values of one linear layer, where each group's queries, its key and its value stand
    together; copies, as a fused product is served by no strided view."""

    def split(x: Tensor) -> tuple[Tensor, ...]:
        parts = heads(x, d_head).unflatten(0, (groups, -1)).split([n_heads // groups, 1, 1], dim=1)
        return tuple(part.flatten(0, 2).contiguous() for part in parts)

    weight, bias = joint
    return tuple(zip(split(weight), (None,) * 3 if bias is None else split(bias), strict=True))


def attention(d_head: int, *parts: Linear, scale: float | None = None) -> dict[str, Any]:
    """The fields of a `Block` that are attention's, of its queries, keys, values and
    output; the scores are scaled by d_head^-1/2 unless told."""
    *read, out = parts
    found: dict[str, Any] = {"scale": d_head**-0.5 if scale is None else scale}
    for letter, (weight, bias) in zip("QKV", read, strict=True):
        found |= {f"W_{letter}": heads(weight, d_head), f"b_{letter}": optional_heads(bias, d_head)}
    return found | {"W_O": heads(out[0].T, d_head), "b_O": out[1]}


def mlp(*parts: Linear) -> dict[str, Any]:
    """The fields of a `Block` that are the MLP's, of what it reads by, its output and, where it has one, its
    gate; of no parts, those of a layer without an MLP."""
    found: dict[str, Any] = {}
    for name, (weight, bias) in zip_longest(("in", "out", "gate"), parts, fillvalue=(None, None)):
        found |= {f"W_{name}": weight, f"b_{name}": bias}
    return found
