"""The computational graph: nodes, edges, and paths in it."""
