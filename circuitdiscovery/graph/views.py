"""A graph, or a part of it, in networkx."""

from __future__ import annotations

import networkx as nx
import numpy as np

from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.graph.nodes import letter_of, node_of, parsed


def networkx_of(graph: Graph, mask: np.ndarray) -> nx.MultiDiGraph:
    """The part of `graph.to_networkx()` that is True in a [sources, receivers] mask, without lonely nodes."""
    view = nx.MultiDiGraph()
    for row, column in np.argwhere(mask):
        name = graph.receivers[column]
        reader = node_of(name)
        if parsed(name).kind == "group" and reader not in view:
            # a text, as formats of networkx take it; no name has a line's end
            view.add_node(reader, heads="\n".join(graph.reader_nodes(name)))
        view.add_edge(graph.sources[row], reader, key=letter_of(name) or 0)
    return view
