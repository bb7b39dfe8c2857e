"""What activations carry: a model's run with editable sites, its activations, and sparse dictionaries of them
(sparse autoencoders, transcoders), trained here or read from the folders of those who train them."""

from circuitdiscovery.features.collecting import Activations, activations, load_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.evaluation import DictionaryQuality, evaluate_sae
from circuitdiscovery.features.lens_reading import LensReading
from circuitdiscovery.features.lenses import Lens, lens
from circuitdiscovery.features.load import load_sae
from circuitdiscovery.features.projection import Projection, project
from circuitdiscovery.features.running import Run, run
from circuitdiscovery.features.training import train_sae

__all__ = [
    "Activations",
    "Dictionary",
    "DictionaryQuality",
    "Lens",
    "LensReading",
    "Projection",
    "Run",
    "activations",
    "evaluate_sae",
    "lens",
    "load_activations",
    "load_sae",
    "project",
    "run",
    "train_sae",
]
