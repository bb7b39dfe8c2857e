"""What activations carry: a model's run with editable sites, its activations, and sparse dictionaries of them
(sparse autoencoders, transcoders), trained here or read from the folders of those who train them."""

from circuitdiscovery.features.collecting import Activations, activations, load_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.evaluation import DictionaryQuality, evaluate_sae
from circuitdiscovery.features.load import load_sae
from circuitdiscovery.features.running import Run, run
from circuitdiscovery.features.sweeping import Sweep, SweepRow, sweep
from circuitdiscovery.features.training import train_sae

__all__ = [
    "Activations",
    "Dictionary",
    "DictionaryQuality",
    "Run",
    "Sweep",
    "SweepRow",
    "activations",
    "evaluate_sae",
    "load_activations",
    "load_sae",
    "run",
    "sweep",
    "train_sae",
]
