"""Do other models do it the same way: neurons, heads and features that several models have in common."""

from circuitdiscovery.universality.dictionaries import FeatureUniversality, features
from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = ["FeatureUniversality", "Universality", "features", "heads", "neurons"]
