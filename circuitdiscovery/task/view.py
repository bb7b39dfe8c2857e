"""A task file for people: what its prompts look like, what its words are, and how many."""

from __future__ import annotations

from collections.abc import Iterator

from circuitdiscovery.task.saved import SavedTask
from circuitdiscovery.task.table import Table
from circuitdiscovery.task.taskfile import PLAIN, Ref, TaskFile, Text

ROWS = 5  # of a table, and words of a list, that are shown


def shown_task(task: TaskFile | Table | SavedTask) -> Iterator[str]:
    """The lines."""
    if isinstance(task, SavedTask):
        yield from _saved(task)
    else:
        yield from _table(task) if isinstance(task, Table) else _file(task)


def _saved(saved: SavedTask) -> Iterator[str]:
    held = 0 if saved.task.held_out is None else len(saved.task.held_out.examples)
    yield (
        f"{saved.name}: a saved task of {len(saved.task.examples)} examples, {held} held out; measured "
        f"by {saved.task.metric}"
    )
    for example in saved.examples(saved.task.examples[:ROWS]):
        yield f"  clean          {example.text or list(example.clean)!r}"
    if len(saved.task.examples) > ROWS:
        yield f"  and {len(saved.task.examples) - ROWS} more"


def _table(table: Table) -> Iterator[str]:
    yield f"{table.name}: a table of {len(table.rows)} prompts"
    for row in table.rows[:ROWS]:
        yield f"  clean          {row.clean!r}"
        yield f"  corrupted      {row.corrupted!r}"
        yield (
            f"  correct        {', '.join(map(repr, row.correct))}; incorrect "
            f"{', '.join(map(repr, row.incorrect)) or 'none'}"
        )
    if len(table.rows) > ROWS:
        yield f"  and {len(table.rows) - ROWS} more"


def _file(task: TaskFile) -> Iterator[str]:
    yield f"{task.name} (version {task.version}): {task.description}"
    yield f"source: {task.source}; measured by {task.metric}"
    if task.generator is not None:
        yield f"prompts are made by the generator {task.generator.kind}"
    yield from (f"  prompt         {_text(text)!r}" for text in task.templates)
    for name, texts in (("correct", task.correct), ("incorrect", task.incorrect)):
        yield f"  {name:<15}{', '.join(repr(_text(text)) for text in texts) or 'none'}"
    for name, slot in task.slots.items():
        source = f"a word of {slot.words}" if slot.words in task.words else "made by the generator"
        source = source if slot.repeats is None else f"what {{{slot.repeats}}} is"
        yield f"  {{{name}}}".ljust(17) + source
    for name, columns in task.words.items():
        for column, words in columns.items():
            listed = ", ".join(words[:ROWS]) + (", ..." if len(words) > ROWS else "")
            yield f"  words {f'{name}.{column}' if column != PLAIN else name}: {len(words)} ({listed})"
    for name, rule in task.counterfactuals.items():
        yield (
            f"  counterfactual {name}{' (default)' if name == task.counterfactual else ''}: {rule.asks}"
        ).rstrip(": ")


def _text(text: Text) -> str:
    return text.fill(_slot)


def _slot(ref: Ref) -> str:
    return "{" + (ref.name if ref.column == PLAIN else f"{ref.name}.{ref.column}") + "}"
