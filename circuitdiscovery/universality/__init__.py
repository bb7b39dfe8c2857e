"""Do other models do it the same way: neurons, heads and features that several models have in common, their
circuits for one task, circuits on other tasks than their own, and how a circuit forms over training."""

from circuitdiscovery.universality.comparing import SharedCircuits, circuits
from circuitdiscovery.universality.dictionaries import FeatureUniversality, features
from circuitdiscovery.universality.forming import Checkpoint, Forming, RoleStrength, checkpoints
from circuitdiscovery.universality.training_run import checkpoint_folders
from circuitdiscovery.universality.transferring import Baseline, Transfer, transfer
from circuitdiscovery.universality.units import Universality, heads, neurons

__all__ = [
    "Baseline",
    "Checkpoint",
    "FeatureUniversality",
    "Forming",
    "RoleStrength",
    "SharedCircuits",
    "Transfer",
    "Universality",
    "checkpoint_folders",
    "checkpoints",
    "circuits",
    "features",
    "heads",
    "neurons",
    "transfer",
]
