"""What makes prompts that templates alone cannot express, by the kind that a task file's [generator] names.

To add one, write a function in a file here and give it a line in `GENERATORS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitdiscovery.task.generators import repeated_tokens, years
from circuitdiscovery.task.generators.generator import GeneratedWords, PromptGenerator

if TYPE_CHECKING:
    from circuitdiscovery.task.taskfile import TaskFile

__all__ = ["GENERATORS", "GeneratedWords", "PromptGenerator", "generator_of"]

GENERATORS: dict[str, PromptGenerator] = {
    "years": years.GENERATOR,
    "repeated_tokens": repeated_tokens.GENERATOR,
}


def generator_of(task: TaskFile) -> PromptGenerator | None:
    """The generator that a task file asks for; None where it has templates alone."""
    return None if task.generator is None else GENERATORS[task.generator.kind]
