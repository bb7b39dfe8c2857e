"""Names of nodes, receivers and edges: one file puts them together and takes them apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import circuitdiscovery as cd
from circuitdiscovery.graph.nodes import edge_name, letter_of, node_of, parsed, receiver_name, split_edge

PACKAGE = Path(cd.__file__).parent
# "a1.h2" or "m1" written or taken apart by hand
BY_HAND = re.compile(
    r"""partition\("(\.h|\.kv|->|<)"\)|split\("(\.h|\.kv|->|<)"\)|"\.kv" in|f"[am]\{|\[0\] [!=]= "[aml]"|\}->\{"""
)


@pytest.mark.parametrize(
    "graph",
    [cd.Graph(3, 4, 2), cd.Graph(2, 3, 3, split_qkv=False), cd.Graph(2, 2, 2, has_mlp=False)],
    ids=str,
)
def test_every_name_is_taken_apart_and_put_together_again(graph: cd.Graph) -> None:
    for source, receiver in map(split_edge, graph.edges):
        assert edge_name(source, receiver_name(node_of(receiver), letter_of(receiver))) in graph.edges
    layers = [parsed(name).layer for name in graph.sources]
    assert layers[0] == -1 and layers == sorted(layers)
    kinds = [parsed(name).kind for name in graph.sources]
    assert (
        kinds.count("head") == graph.n_layers * graph.n_heads
        and kinds.count("mlp") == graph.n_layers * graph.has_mlp
    )


@pytest.mark.parametrize("name", ["", "a1", "h0", "a1.h", "m", "m1.h0", "a1.h2<q", "x3", "a-1.h0"])
def test_other_names_are_refused(name: str) -> None:
    if name == "a1.h2<q":
        assert parsed(name).kind == "head"
        return
    with pytest.raises(cd.CircuitDiscoveryError, match="not the name of a node"):
        parsed(name)


def test_no_other_file_takes_names_apart() -> None:
    found = {
        f"{path.relative_to(PACKAGE)}:{number}"
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("nodes.py", "forward.py")  # which names sites, such as a1.z
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if BY_HAND.search(line) and not line.lstrip().startswith((">>>", "#", "'"))
    }
    assert not found
