"""What the model and the circuit answer, prompt by prompt."""

from __future__ import annotations

from circuitdiscovery.reporting.panels.panel import Panel, beside

PROMPTS = Panel(
    beside(__file__),
    lambda run: {"prompts": run.contents["prompts"] if run.contents else None},
    (("prompts", "Prompts"),),
)
