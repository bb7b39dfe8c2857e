"""How nodes, receivers and edges are named. Nothing else puts a name together or takes one apart.

input   a{layer}.h{head}   a{layer}.kv{group}   m{layer}   logits          nodes
m1/n30   a1.h2/@S2   m1/rest                                                 parts of a node that is a sum
a1.h2<q>   a1.kv0<k>   a1.h2   m1   m1/n30   logits                         receivers: a node, and which input
m0->a1.h2<q>                                                                 an edge: a source and a receiver
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, Literal

from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown

LETTERS = ("q", "k", "v")
INPUT, LOGITS = "input", "logits"
REST = "rest"  # the part that holds what the named ones leave
Kind = Literal["input", "head", "group", "mlp", "logits"]
_NODE = re.compile(r"(?:(a)(\d+)\.(h|kv)(\d+)|(m)(\d+))")


@dataclass(frozen=True)
class Node:
    """What a name says.

    Args:
        kind: a group stands for the key and the value that several heads share.
        layer: -1 for `input` and `logits`.
        index: of the head or the group in its layer, else 0.
        part: which part of the node it is, such as `n30`; empty for the node itself.
    """

    kind: Kind
    layer: int = -1
    index: int = 0
    part: str = ""

    @property
    def in_attention(self) -> bool:
        """Whether it is a head or a group of heads."""
        return self.kind in ("head", "group")


@lru_cache(maxsize=100_000)
def parsed(name: str) -> Node:
    """The node of a name, or of a receiver's.

    >>> parsed("a1.h2<q>"), parsed("logits")
    (Node(kind='head', layer=1, index=2, part=''), Node(kind='logits', layer=-1, index=0, part=''))

    Raises:
        CircuitDiscoveryError: no node is named like this.
    """
    node, _, part = node_of(name).partition("/")
    if node in (INPUT, LOGITS):
        return Node("input" if node == INPUT else "logits", part=part)
    match = _NODE.fullmatch(node)
    if match is None:
        raise CircuitDiscoveryError(
            f"{shown(name)} is not the name of a node, such as 'a1.h2' (a{{layer}}.h{{head}}) or 'm1'"
        )
    if match[5]:
        return Node("mlp", int(match[6]), part=part)
    return Node("head" if match[3] == "h" else "group", int(match[2]), int(match[4]), part)


def part_name(node: str, part: str) -> str:
    """The name of a part of a node: `m1`, `n30` -> `m1/n30`."""
    return f"{node}/{part}"


def whole_of(name: str) -> str:
    """The node that a name is of or that it is a part of: `m1/n30` -> `m1`, `a1.h2<q>` -> `a1.h2`."""
    return node_of(name).partition("/")[0]


def head_of(name: str) -> tuple[int, int]:
    """The layer of a head and its index there: `a1.h2` -> (1, 2)."""
    node = parsed(name)
    return node.layer, node.index


def head_name(layer: int, index: int) -> str:
    """The name of a head."""
    return f"a{layer}.h{index}"


def group_name(layer: int, index: int) -> str:
    """The name of what several heads share."""
    return f"a{layer}.kv{index}"


def mlp_name(layer: int) -> str:
    """The name of an MLP."""
    return f"m{layer}"


def receiver_name(node: str, letter: str = "") -> str:
    """The name of what a node reads through: its query, key or value, or all it reads.

    >>> receiver_name("a1.h2", "q"), receiver_name("m1")
    ('a1.h2<q>', 'm1')
    """
    return f"{node}<{letter}>" if letter else node


def edge_name(source: str, into: str) -> str:
    """The name of an edge, from its source and its receiver."""
    return f"{source}->{into}"


def node_of(name: str) -> str:
    """The node a receiver belongs to: `a1.h2<q>` -> `a1.h2`."""
    return name.partition("<")[0]


def letter_of(name: str) -> str:
    """The letter of a receiver inside a head, else the empty string: `a1.h2<q>` -> `q`."""
    return name.partition("<")[2].rstrip(">")


def split_edge(name: str) -> tuple[str, str]:
    """(source, receiver) of an edge's name; the second is empty where it is the name of no edge."""
    source, _, into = name.partition("->")
    return source, into


def ends_of(edge: Any) -> tuple[Any, Any]:
    """The source and the receiver of an edge: texts, or row and column.

    >>> ends_of("m0->a1.h0<q>"), ends_of(("m0", "logits")), ends_of(("m0", "a1.h0", "q"))
    (('m0', 'a1.h0<q>'), ('m0', 'logits'), ('m0', 'a1.h0<q>'))
    """
    if isinstance(edge, str):
        return split_edge(edge)
    ends = edge.tolist() if hasattr(edge, "tolist") else edge
    if isinstance(ends, Sequence) and not isinstance(ends, bytes) and len(ends) in (2, 3):
        source, into, *letter = ends
        if (
            isinstance(source, str)
            and isinstance(into, str)
            and all(isinstance(each, str) or each == 0 for each in letter)
        ):
            return source, receiver_name(into, letter[0] if any(letter) else "")
        if all(isinstance(each, Integral) and not isinstance(each, bool) for each in ends) and not letter:
            return source, into
    raise CircuitDiscoveryError(
        f"an edge is a text such as 'm0->logits' or a pair such as ('m0', 'logits'), not {shown(edge)}"
    )


def no_node(
    name: object, valid: Sequence[str], kind: str = "node", plural: str | None = None
) -> CircuitDiscoveryError:
    """The error for what is not the name of a node; it knows how other libraries write heads and layers.

    >>> str(no_node("L1H2", ["input", "a1.h2", "m1", "logits"]))[:36]
    "no node 'L1H2'; did you mean 'a1.h2'"
    """
    if not isinstance(name, str) and isinstance(name, Sequence):
        name = ".".join(map(str, name))
    numbers = re.findall(r"[0-9]{1,4}", str(name)[:200])
    mlps = numbers[:1] if "mlp" in str(name)[:200].lower() else []
    meant = (
        mlp_name(int(mlps[0]))
        if mlps
        else head_name(int(numbers[0]), int(numbers[1]))
        if len(numbers) > 1
        else ""
    )
    told = str(unknown(kind, name, valid, plural=plural))
    if meant in valid and name != meant:
        told = re.sub(r"; (did you mean '[^']*'\? )?", f"; did you mean {meant!r}? ", told, count=1)
    return CircuitDiscoveryError(f"{told} (a head is a{{layer}}.h{{head}}, an MLP m{{layer}})")
