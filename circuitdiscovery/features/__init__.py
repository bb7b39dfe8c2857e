"""What activations carry: a model's run with editable sites, its activations, and sparse dictionaries of them
(sparse autoencoders, transcoders), trained here or read from the folders of those who train them."""

from circuitdiscovery.features.active import top_activations
from circuitdiscovery.features.collecting import Activations, activations, load_activations
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.evaluation import DictionaryQuality, evaluate_sae
from circuitdiscovery.features.labelling import Labels, labels, labels_from_csv, text_labels, word_labels
from circuitdiscovery.features.lens_reading import LensReading
from circuitdiscovery.features.lenses import Lens, lens
from circuitdiscovery.features.load import load_sae
from circuitdiscovery.features.patchscopes import IDENTITY as IDENTITY
from circuitdiscovery.features.patchscopes import Patchscope, patchscope
from circuitdiscovery.features.probe_erasing import Erasure
from circuitdiscovery.features.probe_table import ProbeRow, Probes, probes
from circuitdiscovery.features.probing import Probe, ProbeScores, probe
from circuitdiscovery.features.projection import Projection, project
from circuitdiscovery.features.ratings import Ratings, Sheet, rate, read_ratings
from circuitdiscovery.features.running import Run, run
from circuitdiscovery.features.scoring import ExplanationScore
from circuitdiscovery.features.snippets import Bin, Snippet, TopActivations
from circuitdiscovery.features.steering import Move, Steering, steer
from circuitdiscovery.features.sweeping import Sweep, SweepRow, sweep
from circuitdiscovery.features.training import train_sae

__all__ = [
    "Activations",
    "Bin",
    "Dictionary",
    "DictionaryQuality",
    "Erasure",
    "ExplanationScore",
    "Labels",
    "Lens",
    "LensReading",
    "Move",
    "Patchscope",
    "Probe",
    "ProbeRow",
    "ProbeScores",
    "Probes",
    "Projection",
    "Ratings",
    "Run",
    "Sheet",
    "Snippet",
    "Steering",
    "Sweep",
    "SweepRow",
    "TopActivations",
    "activations",
    "evaluate_sae",
    "labels",
    "labels_from_csv",
    "lens",
    "load_activations",
    "load_sae",
    "patchscope",
    "probe",
    "probes",
    "project",
    "rate",
    "read_ratings",
    "run",
    "steer",
    "sweep",
    "text_labels",
    "top_activations",
    "train_sae",
    "word_labels",
]
