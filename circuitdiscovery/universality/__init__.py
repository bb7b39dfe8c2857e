"""Do other models do it the same way: neurons and attention heads that several models have in common, and
circuits on other tasks than their own.
"""

from circuitdiscovery.universality.transferring import Baseline, Transfer, transfer
from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = ["Baseline", "Transfer", "Universality", "heads", "neurons", "transfer"]
