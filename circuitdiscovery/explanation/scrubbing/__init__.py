"""Causal scrubbing: a hypothesis, its tree, and the test of it."""
