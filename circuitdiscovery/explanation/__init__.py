"""What the nodes of a circuit do: interventions, roles, cards, causal scrubbing."""
