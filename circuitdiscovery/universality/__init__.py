"""Do other models do it the same way: neurons and attention heads that several models have in common."""

from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = ["Universality", "heads", "neurons"]
