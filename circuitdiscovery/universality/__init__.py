"""Do other models do it the same way: neurons and attention heads that several models have in common, their
circuits for one task, and circuits on other tasks than their own."""

from circuitdiscovery.universality.comparing import SharedCircuits, circuits
from circuitdiscovery.universality.transferring import Baseline, Transfer, transfer
from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = [
    "Baseline",
    "SharedCircuits",
    "Transfer",
    "Universality",
    "circuits",
    "heads",
    "neurons",
    "transfer",
]
