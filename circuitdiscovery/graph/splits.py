"""Nodes that are written as sums of parts, and the names of the parts.

What a node writes may be a sum of named parts, and the last part, `rest`, is what they leave: all parts
together are the node, by construction. A part's name is its node's and its own, `m2/n301`.

| kind | parts | read by |
| --- | --- | --- |
| `neurons` | `m2/n301`: what a neuron writes, its activation times a column of W_out | a receiver each |
| `features` | `m2/f17`: what a feature of a dictionary writes | one each (transcoders), or the node's |
| `experts` | `m2/e3`: what an expert writes, times its weight | the node's receiver |
| `positions` | `a1.h0/@S2`: what the node writes at some positions | the node's receivers |
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import read_json, to_json
from circuitdiscovery.files.fields import exactly, typed
from circuitdiscovery.graph.nodes import REST, parsed, part_name

Kind = Literal["neurons", "features", "experts", "positions"]
KINDS: tuple[str, ...] = get_args(Kind)
LETTER = {"neurons": "n", "features": "f", "experts": "e", "positions": "@"}  # a part's name begins with it

_NUMBER = re.compile("0|[1-9][0-9]{0,17}")  # as it is written, so that a part has one name


@dataclass(frozen=True)
class Schema:
    """Where the spans of each prompt are, so that prompts of different length have the same ones (Haklay et
    al. 2025, arXiv 2502.04577).

    Args:
        prompts: a prompt's text -> the name of a span -> (first token, the one after the last), from 0.
    """

    prompts: Mapping[str, Mapping[str, tuple[int, int]]]

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """From a .json file: {"a prompt": {"subject": [0, 2], "verb": [2, 3]}, ...}, the same names in all.

        Raises:
            CircuitDiscoveryError: anything else, or a span without tokens; names the prompt.
        """
        data, where = read_json(path), str(path)
        found: dict[str, dict[str, tuple[int, int]]] = {}
        for text, spans in typed(data, dict, where, "").items():
            place = shown(text, 40)
            for name, ends in typed(spans, dict, where, place).items():
                ends = typed(ends, list, where, f"{place}.{name}")
                first, stop = ends if len(ends) == 2 else (0, 0)
                if type(first) is not int or type(stop) is not int or not 0 <= first < stop:
                    raise CircuitDiscoveryError(
                        f"{where}: {place}: span {name!r} must be [first, after the last], not {shown(ends)}"
                    )
                found.setdefault(text, {})[name] = (first, stop)
        if not found or len({tuple(sorted(spans)) for spans in found.values()}) > 1:
            raise CircuitDiscoveryError(f"{where}: every prompt needs spans, and all the same names")
        return cls(found)

    @property
    def names(self) -> tuple[str, ...]:
        """The spans' names, in the order of the first prompt."""
        return tuple(next(iter(self.prompts.values())))

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return hashlib.sha256(to_json(self.prompts).encode()).hexdigest()


@dataclass(frozen=True)
class Split:
    """One node as a sum of parts.

    Args:
        node: `input`, a head or an MLP.
        kind: what its parts are.
        parts: their names after the slash, such as `n301`, without `rest`.
        own: whether each part, and the rest, has a receiver of its own.
        spans: of `positions`, for each part its positions, which may count from the end; an empty one is
            where a task's example names it.
        digest: of the dictionary or the schema.
        dictionary: what computes features, or the schema that says where each prompt's spans are; no part of
            what a graph is, but to run it needs it.
    """

    node: str
    kind: Kind
    parts: tuple[str, ...]
    own: bool = False
    spans: tuple[tuple[int, ...], ...] = ()
    digest: str = ""
    dictionary: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        place = parsed(self.node)
        if place.part or place.kind not in ("input", "head", "mlp"):
            raise CircuitDiscoveryError(
                f"a node that is split is 'input', a head or an MLP, not {shown(self.node)}"
            )
        if self.kind not in KINDS or (self.kind != "positions" and place.kind != "mlp"):
            raise CircuitDiscoveryError(f"{self.node} cannot be split into {shown(self.kind)}")
        if not self.parts:
            raise CircuitDiscoveryError(f"{self.node} is split into no parts: it needs one beside the rest")
        if len(set(self.parts)) < len(self.parts):
            raise CircuitDiscoveryError(f"{self.node} is split into parts of the same name")
        if any(not part.startswith(LETTER[self.kind]) or part == REST for part in self.parts):
            raise CircuitDiscoveryError(
                f"{self.node}: a part of {self.kind} is named as in "
                f"{part_name(self.node, LETTER[self.kind] + '3')!r}"
            )
        if self.kind != "positions" and not all(_NUMBER.fullmatch(part[1:]) for part in self.parts):
            raise CircuitDiscoveryError(
                f"{self.node}: a part of {self.kind} is a letter and a number without leading zeros"
            )
        if self.own != (self.kind == "neurons") and self.kind != "features":
            raise CircuitDiscoveryError(f"{self.node}: neurons read for themselves, {self.kind} do not")
        if len(self.spans) not in (0, len(self.parts)):
            raise CircuitDiscoveryError(f"{self.node}: {len(self.parts)} parts, but {len(self.spans)} spans")

    @property
    def names(self) -> tuple[str, ...]:
        """Its sources, `rest` last."""
        return tuple(part_name(self.node, part) for part in (*self.parts, REST))

    @property
    def scaled(self) -> bool:
        """Whether each named part writes a number times a vector of its own."""
        return self.kind in ("neurons", "features")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Which neurons, features or experts its parts are."""
        return tuple(int(part[1:]) for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the dictionary."""
        told: dict[str, Any] = {"node": self.node, "kind": self.kind, "parts": list(self.parts)}
        told |= {"own": True} if self.own else {}
        told |= {"spans": [list(span) for span in self.spans]} if self.spans else {}
        return told | ({"digest": self.digest} if self.digest else {})

    @classmethod
    def from_dict(cls, data: Any, where: str, field: str) -> Split:
        """What `to_dict` gave.

        Raises:
            CircuitDiscoveryError: anything missing, surplus or of another type.
        """
        exactly(data, ("node", "kind", "parts"), where, field, optional=("own", "spans", "digest"))
        kinds: dict[str, type] = {"node": str, "kind": str, "parts": list, "own": bool, "spans": list}
        for name, kind in kinds.items():
            if name in data:
                typed(data[name], kind, where, f"{field}.{name}")
        for part in data["parts"]:
            typed(part, str, where, f"{field}.parts")
        spans = tuple(
            tuple(
                typed(at, int, where, f"{field}.spans") for at in typed(span, list, where, f"{field}.spans")
            )
            for span in data.get("spans", [])
        )
        try:
            return cls(
                data["node"],
                data["kind"],
                tuple(data["parts"]),
                data.get("own", False),
                spans,
                typed(data.get("digest", ""), str, where, f"{field}.digest"),
            )
        except CircuitDiscoveryError as error:
            raise CircuitDiscoveryError(f"{where}: field {field!r}: {error}") from None
