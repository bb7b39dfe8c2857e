"""The model as a function of an edge mask: ablations, metrics, and fast forwards of any circuit."""
