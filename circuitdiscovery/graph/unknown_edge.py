"""What to say of an edge that a graph does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitdiscovery.errors import nearest, shown
from circuitdiscovery.graph.nodes import edge_name, node_of

if TYPE_CHECKING:
    from circuitdiscovery.graph.graph import Graph


def no_edge(graph: Graph, edge: str, source: str, receiver: str) -> str:
    """The sentence, with the nearest edge that there is.

    The two ends are looked up separately: there are tens of thousands of edges.
    """
    valid = f"Valid edges: {graph.edges[0]}, ..., {graph.edges[-1]} (a source, and a receiver after it)"
    if max(len(source), len(receiver)) > 200:
        return f"no edge {shown(edge, 100)}; {valid}"
    several = [
        name for name in graph.receivers if receiver == node_of(name) or receiver in graph.reader_nodes(name)
    ]
    if several and receiver not in graph.receiver_index and source in graph.source_index:
        listed = f"{', '.join(several[:-1])} and {several[-1]}" if several[1:] else several[0]
        return (
            f"no edge {edge!r}; {receiver} is not one receiver: it reads by {listed}, such as "
            f"{edge_name(source, several[0])}"
        )
    near = [
        edge_name(s, r)
        for s in nearest(source, graph.sources)
        for r in nearest(receiver, graph.receivers)
        if graph.allowed[graph.source_index[s], graph.receiver_index[r]]
    ]
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no edge {shown(edge, 100)}; {hint}{valid}"
