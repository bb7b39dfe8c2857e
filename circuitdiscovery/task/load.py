"""Loading a task: a shipped one, a TOML file, a table, rows at hand or what `Task.save` wrote, in a model's
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from random import Random
from typing import Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.prompts import Apart, draw
from circuitdiscovery.task.read import counterfactual_of, read_task
from circuitdiscovery.task.saved import Drawn, Kept, SavedTask
from circuitdiscovery.task.table import Table, table_of
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.taskfile import TaskFile
from circuitdiscovery.task.tokenization import Encoder, HasTokenizer, encoder_of, first_foreign
from circuitdiscovery.task.vocabulary import Vocabulary, vocabulary

EXAMPLES = 64  # of a task that can draw any number: enough for a stable ranking, few enough for a CPU

COUNTED = 5_000  # draws at most that are made to say how many prompts there are, which takes a second


@guarded
def load_task(
    name_or_path: Any,  # str | Path, a DataFrame or a list of dicts
    model: HasTokenizer,
    *,
    examples: int | None = None,
    seed: int = 0,
    counterfactual: str | None = None,
    bos: bool | None = None,
    metric: str | None = None,
    skip_bad: bool = False,
) -> Task:
    """A shipped task, or one of your own from a .toml, .csv, .jsonl or .json file or
    from rows at hand, in the model's tokens.

    Args:
        name_or_path: a shipped name (`shipped_tasks()`), a path, or rows: a DataFrame or a list of dicts with
            a table's columns. A .json file is what `Task.save` wrote; nothing of it is drawn or split again,
            and it is in the tokens of the model it was made for.
        model: whose tokenizer makes the tokens.
        examples: how many; as many more are held out. None: 64 drawn ones (fewer where a file cannot make
            128), half of a table; give 128 or more to search a model of a real size by attribution, whose
            scores differ more from prompt to prompt.
        seed: of everything random. The same seed, file and tokenizer give the same task.
        counterfactual: one of a TOML file's; None: the one that the file names.
        bos: put the tokenizer's BOS in front, or take it away; None: as
            the file says, else as the tokenizer does.
        metric: in place of the task's own.
        skip_bad: go on without the rows of a table that cannot be used;
            `info["skipped"]` says how many these are.

    Returns:
        The task, with as many held-out examples as it has examples where the source has enough.

    Raises:
        CircuitDiscoveryError: for a broken file, rows that do not fit (counted, the first
            five named), or an option that is not valid.
    """
    if examples is not None and (type(examples) is not int or examples < 1):
        raise CircuitDiscoveryError(f"examples must be a whole number of at least 1, not {examples}")
    source = _source(name_or_path)
    if not isinstance(source, TaskFile) and counterfactual is not None:
        counterfactual_of(source, counterfactual)
    task = _made(source, model, examples, seed, counterfactual, bos, skip_bad)
    return replace(task, metric=canonical("metric", metric)) if metric is not None else task


def _made(
    source: TaskFile | Table | SavedTask,
    model: HasTokenizer,
    examples: int | None,
    seed: int,
    counterfactual: str | None = None,
    bos: bool | None = None,
    skip_bad: bool = False,
) -> Task:
    """A task that was read, in a model's tokens."""
    if isinstance(source, SavedTask):
        task = _from_saved(source, model, examples, bos)
    elif isinstance(source, Table):
        task = _from_table(source, encoder_of(model, source.name, bos), examples, seed, skip_bad)
    else:
        encoder = encoder_of(model, source.name, source.bos if bos is None else bos)
        task = _from_file(source, encoder, examples, seed, counterfactual or source.counterfactual)
    if all(
        example.clean == example.corrupted
        for part in (task, task.held_out)
        if part is not None
        for example in part.examples
    ):
        raise CircuitDiscoveryError(
            f"task {task.title}: every corrupted prompt is its clean prompt, so there is nothing to explain"
        )
    return task


def tasks_alike(
    name_or_path: Any,
    models: Sequence[HasTokenizer],
    *,
    examples: int | None = None,
    seed: int = 0,
    counterfactual: str | None = None,
    skip_bad: bool = False,
) -> list[Task]:
    """A task in the tokens of each of several models, of the same words where these are listed: only those
    that all of the tokenizers have. A task of templates so has the same clean prompts, but for those whose
    counterfactual has another length in some model.

    Args:
        name_or_path, examples, seed, counterfactual, skip_bad: as for `load_task`.
        models: whose tokenizers make the tokens.

    Raises:
        CircuitDiscoveryError: as `load_task`.
    """
    source = _source(name_or_path)
    if isinstance(source, TaskFile):
        file = source
        found = [vocabulary(file, encoder_of(model, file.name, file.bos)).words for model in models]
        source = replace(
            file,
            words={name: _in_all(columns, [w[name] for w in found]) for name, columns in file.words.items()},
        )
    return [_made(source, model, examples, seed, counterfactual, None, skip_bad) for model in models]


def _in_all(
    columns: Mapping[str, Sequence[str]], kept: Sequence[Mapping[str, Sequence[str]]]
) -> dict[str, tuple[str, ...]]:
    """The entries of a word list that every tokenizer has, by column."""
    common = set.intersection(*(set(zip(*each.values(), strict=True)) for each in kept))
    entries = [entry for entry in zip(*columns.values(), strict=True) if entry in common]
    return {column: tuple(entry[i] for entry in entries) for i, column in enumerate(columns)}


def _source(given: Any) -> TaskFile | Table | SavedTask:
    """What is read before there are tokens; a table's bad rows stand beside it."""
    records = _records(given)
    return read_task(given, skip_bad=True) if records is None else table_of(records, "table", skip_bad=True)


def _records(given: Any) -> Sequence[Any] | None:
    """The rows of a DataFrame, or of a list; None for anything else."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return given.to_dict("records")
    return given if isinstance(given, list | tuple) else None


def _from_table(table: Table, encoder: Encoder, examples: int | None, seed: int, skip_bad: bool) -> Task:
    """Half of the rows by the seed; the others are held out."""
    everything, bad = encoder.usable(table, skip_bad)
    parts = _halves(everything, seed)
    if examples is not None and examples > len(parts[0]):
        raise CircuitDiscoveryError(
            f"examples must be from 1 to {len(parts[0])}, not {examples}: {table.name} has "
            f"{len(everything)} rows, and half are held out"
        )
    chosen, held = (tuple(everything[row] for row in sorted(rows[:examples])) for rows in parts)
    used = {row for rows in parts for row in rows[:examples]}
    rest = tuple(example for row, example in enumerate(everything) if row not in used)
    task = Task(table.name, chosen, seed=seed, others=rest, info={"skipped": bad} if bad else {})
    return replace(task, held_out=replace(task, examples=held)) if held else task


def _halves(examples: Sequence[Example], seed: int) -> tuple[list[int], list[int]]:
    """The rows in two parts of about as many clean prompts: rows that share a prompt, clean or corrupted,
    are in one, or where too many do those that share the clean one.
    """

    def size(rows: Sequence[int]) -> int:
        return len({examples[row].clean for row in rows})

    half = (size(range(len(examples))) + 1) // 2
    groups = _tied([(example.clean, example.corrupted) for example in examples])
    if max(map(size, groups)) > half:
        groups = _tied([(example.clean, example.clean) for example in examples])
    Random(f"{seed}").shuffle(groups)
    before = [0, *accumulate(map(size, groups))]
    cut = min(range(1, len(groups)), key=lambda end: (abs(before[end] - half), -end), default=1)
    first, second = ([row for rows in some for row in rows] for some in (groups[:cut], groups[cut:]))
    return first, second


def _tied(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[int]]:
    """The numbers of the pairs in groups: what shares something, directly or through others, is in one."""
    above: dict[tuple[int, ...], tuple[int, ...]] = {}

    def top(each: tuple[int, ...]) -> tuple[int, ...]:
        while above.setdefault(each, each) != each:
            above[each] = above[above[each]]
            each = above[each]
        return each

    for one, other in pairs:
        above[top(other)] = top(one)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (one, _) in enumerate(pairs):
        groups.setdefault(top(one), []).append(number)
    return list(groups.values())


def _from_saved(saved: SavedTask, model: HasTokenizer, examples: int | None, bos: bool | None) -> Task:
    """The task as it was; the first of its examples, and of those held out, where fewer are asked for."""
    if bos is not None:
        raise CircuitDiscoveryError(
            f"task {saved.name}: a saved task has the BOS that its tokens begin with; bos is for texts"
        )
    if model.tokenizer is not None:
        row = first_foreign(saved.examples(saved.task.examples), model.tokenizer)
        if row is not None:
            told = (
                "the model's tokenizer makes other tokens of its text than those that were saved: it is "
                "another model's task"
            )
            raise CircuitDiscoveryError(f"task {saved.name}, row {row}: {told}")

    def made(kept: Kept) -> Task:
        held_out = None if kept.held_out is None else made(kept.held_out)
        apart = None if kept.apart is None else Drawn(saved.examples(kept.apart))
        prompts, others = saved.examples(kept.examples), saved.examples(kept.others)
        known = (kept.name, prompts, held_out, kept.metric, kept.seed, kept.info, others, apart)
        return Task(*known, part=kept.part or {}, chosen=bool(kept.chosen))

    task = made(saved.task)
    if examples is None or examples == len(task):
        return task
    if examples > len(task):
        raise CircuitDiscoveryError(
            f"examples must be from 1 to {len(task)}, not {examples}: so many were saved of task {task.title}"
        )

    def first(part: Task) -> Task:
        return part.subset(range(min(examples, len(part))))

    return replace(first(task), held_out=None if task.held_out is None else first(task.held_out))


def _from_file(
    file: TaskFile, encoder: Encoder, examples: int | None, seed: int, counterfactual: str
) -> Task:
    name = counterfactual_of(file, counterfactual)
    drawn, vocab = _drawn(file, encoder, examples, seed, name)
    half = examples or max(1, len(drawn) // 2)
    info = {
        "version": file.version,
        "description": file.description,
        "source": file.source,
        "counterfactual": name,
    }
    info |= {"asks": file.counterfactuals[name].asks} if file.counterfactuals[name].asks else {}
    info |= {"left_out": {key: list(words) for key, words in vocab.left_out.items()}}
    apart = Apart(file, encoder, name, seed, len(drawn))
    task = Task(file.name, drawn[:half], metric=file.metric, seed=seed, info=info, apart=apart)
    return replace(task, held_out=replace(task, examples=drawn[half:])) if drawn[half:] else task


def _drawn(
    file: TaskFile, encoder: Encoder, examples: int | None, seed: int, counterfactual: str
) -> tuple[tuple[Example, ...], Vocabulary]:
    """Twice as many as asked for, or an error that says how many there are; not asked, at most twice 64. The
    only prompt of a task is its example, and none is held out.
    """
    count, least = 2 * (examples or EXAMPLES), 1 if examples in (None, 1) else 2 * examples
    (most, draws), vocab, rows = draw(file, encoder, counterfactual=counterfactual, seed=seed)
    tried = least <= most or draws <= COUNTED
    found = tuple(islice(rows, count)) if tried else ()
    if len(found) < least:
        there = len(found) if tried else int(most)
        number = f"{there}" if tried else f"at most {there}"
        told = f"{file.name} makes {number} different prompts with this tokenizer, and half are held out"
        raise CircuitDiscoveryError(
            f"examples must be from 1 to {max(1, there // 2)}, not {count // 2}: the task {told}"
        )
    return found, vocab
