"""The benchmark: search methods against circuits that are known, and against each other at equal sparsity."""
