"""The arguments of public functions: each is checked or converted before the function begins."""

from circuitdiscovery.arguments.door import guarded

__all__ = ["guarded"]
