"""What public functions take: every argument is checked, or made what the
function needs, before the function begins.
"""

from circuitdiscovery.arguments.door import guarded

__all__ = ["guarded"]
