"""What makes prompts that templates alone cannot express, by the kind that a task file's [generator] names.

To add one, write a `PromptGenerator` in a file here and give it a line in registry/__init__.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from circuitdiscovery.registry import GENERATORS
from circuitdiscovery.task.generators.generator import GeneratedWords, PromptGenerator

if TYPE_CHECKING:
    from circuitdiscovery.task.taskfile import TaskFile

__all__ = ["GeneratedWords", "PromptGenerator", "generator_of", "named"]


def named(kind: str) -> PromptGenerator:
    """The generator of a kind."""
    return GENERATORS[kind].load()


def generator_of(task: TaskFile) -> PromptGenerator | None:
    """The generator that a task file asks for; None where it has templates alone."""
    return None if task.generator is None else named(task.generator.kind)
