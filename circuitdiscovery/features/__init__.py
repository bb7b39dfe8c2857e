"""Sparse dictionaries (sparse autoencoders, transcoders), read from the folders of those who train them."""

from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.load import load_sae

__all__ = ["Dictionary", "load_sae"]
