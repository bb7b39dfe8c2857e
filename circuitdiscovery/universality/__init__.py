"""Do other models do it the same way: neurons and attention heads that several models have in common, and the
circuits that they have for one task."""

from circuitdiscovery.universality.comparing import SharedCircuits, circuits
from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = ["SharedCircuits", "Universality", "circuits", "heads", "neurons"]
