"""A task in a line, as its repr has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitdiscovery.task.task import Task


def in_a_line(task: Task) -> str:
    """Its name, how many examples of how many tokens it has, and what else is known of them."""
    lengths = sorted({len(example.clean) for example in task.examples})
    tokens = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
    held = "none" if task.held_out is None else str(len(task.held_out))
    same = [] if task.different == len(task) else [f"{task.different} different prompts"]
    parts = [
        f"{len(task)} example{'s' * (len(task) > 1)} of {tokens} tokens",
        *same,
        f"{held} held out",
        task.metric,
    ]
    parts += [f"counterfactual {task.info['counterfactual']}"] if "counterfactual" in task.info else []
    parts += [f"seed {task.seed}"] if task.seed is not None else []
    parts += [f"{task.info['skipped']} bad rows left out"] if "skipped" in task.info else []
    return f"{task.title}: {', '.join(parts)}{_left_out(task)}{_seen(task)}"


def _left_out(task: Task) -> str:
    left_out: Mapping[str, Sequence[str]] = task.info.get("left_out", {})
    told = [
        f"{len(words)} of {name} ({', '.join(words[:3])}{', ...' if len(words) > 3 else ''})"
        for name, words in left_out.items()
    ]
    return "; words left out: " + ", ".join(told) if told else ""


def _seen(task: Task) -> str:
    """Of the held-out prompts those that a search runs as corrupted ones."""
    corrupted = {example.corrupted for example in task.examples}
    held = () if task.held_out is None else task.held_out.examples
    seen = sum(example.clean in corrupted for example in held)
    told = "held-out prompts that are corrupted ones of the search"
    return f"; {told}: {seen} of {len(held)}" if seen else ""
