"""What activations carry: a model's run with editable sites, its activations, and sparse dictionaries of them
(sparse autoencoders, transcoders), trained here or read from the folders of those who train them."""

from circuitdiscovery.features.collecting import Activations, activations, load_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.evaluation import DictionaryQuality, evaluate_sae
from circuitdiscovery.features.labels import Labels, labels, labels_from_csv, text_labels, word_labels
from circuitdiscovery.features.load import load_sae
from circuitdiscovery.features.probe_erasing import Erasure
from circuitdiscovery.features.probe_table import ProbeRow, Probes, probes
from circuitdiscovery.features.probing import Probe, ProbeScores, probe
from circuitdiscovery.features.running import Run, run
from circuitdiscovery.features.training import train_sae

__all__ = [
    "Activations",
    "Dictionary",
    "DictionaryQuality",
    "Erasure",
    "Labels",
    "Probe",
    "ProbeRow",
    "ProbeScores",
    "Probes",
    "Run",
    "activations",
    "evaluate_sae",
    "labels",
    "labels_from_csv",
    "load_activations",
    "load_sae",
    "probe",
    "probes",
    "run",
    "text_labels",
    "train_sae",
    "word_labels",
]
