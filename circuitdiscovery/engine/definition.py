"""The definition: the model as a function of an edge mask, in its clearest form.

    receiver r reads  sum over groups g of  out_g( sum over s in g of  replacement_s +
    mask[s, r] (current_s - replacement_s) )

A group is what passes through one output function together: `input`, the heads of one layer, or one MLP,
and where a node is split, its parts.
out_g adds the output's bias. The mask holds real numbers, one for each edge or one for each edge and
position, and the logits have a gradient in it: at a mask of ones that gradient is attribution patching's
(Syed et al. 2023, arXiv 2310.10348, equation 2). What is fast (fast.py, relaxed.py) is tested against this.

Shapes: S sources, R receivers, N examples, T positions, D d_model, H heads, K d_head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.parts import Parts
from circuitdiscovery.model.run import at_position, per_head, unembed


def masked_logits(
    model: Model,
    graph: Graph,
    start: Tensor,
    replacement: Tensor,
    position: Tensor,
    mask: Tensor,
    inside: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """[N, vocabulary]: one forward in which every edge carries a part
    of its source; differentiable in the mask.

    Args:
        model, graph: what runs, and how its edges are counted.
        start: [N, T, D], what `input` currently writes.
        replacement: [S, N, T, D], what a removed edge carries.
        position: [N], where the logits are wanted.
        mask: [S, R] or [S, R, T] real, 0 where there is no edge.
        inside: as `Parts` has it.
    """
    parts = Parts(model, graph, inside or {})
    # (sources, out), in topological order
    groups: list[tuple[slice, Callable[[Tensor], Tensor]]] = [(graph.inputs, lambda x: x)]
    # [sources so far, N, T, D]: current - replacement
    change = parts.input(start) - replacement[graph.inputs]
    which = "sr,sntd->rntd" if mask.dim() == 2 else "srt,sntd->rntd"

    def read(columns: np.ndarray) -> Tensor:
        """[len(columns), N, T, D]."""
        at = torch.from_numpy(columns).to(mask.device)
        each = [
            out(replacement[rows].sum(0) + torch.einsum(which, mask[rows][:, at], change[rows]))
            for rows, out in groups
        ]
        return torch.stack(each).sum(0)

    for layer, block in enumerate(model.blocks):
        q, k, v = (
            block.projected(letter, read(graph.columns(layer, letter)).to(block.device)) for letter in "qkv"
        )
        z = block.attend(q, per_head(model, k), per_head(model, v))  # [H, N, T, K]
        heads = graph.heads(layer)
        attention = parts.heads(layer, block.written(z)).to(replacement.device) - replacement[heads]
        if not graph.parallel:
            groups.append((heads, block.out_attention))
            change = torch.cat([change, attention])
        own = graph.mlps(layer)
        written = replacement[own]  # [s, N, T, D]; none without MLPs
        if graph.has_mlp:
            read_here = read(graph.columns(layer, "m")).to(block.device)
            written = parts.mlp(layer, read_here).to(replacement.device)
        if graph.parallel:
            groups.append((heads, block.out_attention))
            change = torch.cat([change, attention])
        groups.append((own, parts.out_mlp(layer)))
        change = torch.cat([change, written - replacement[own]])
    last = read(np.array([len(graph.receivers) - 1]))[0]
    return unembed(model, at_position(last, position))
