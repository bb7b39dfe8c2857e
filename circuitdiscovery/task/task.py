"""A task: pairs of clean and corrupted prompts with their right and wrong answers, as tokens.

task = load_task("ioi", model, examples=64, seed=0)     a shipped task, a TOML file, a table, or what
Task.save wrote task = Task.from_tokens(clean=..., corrupted=..., correct=..., incorrect=...)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import data_frame, ending, write_json
from circuitdiscovery.registry import canonical
from circuitdiscovery.task.encoder import Encoder, Example, resolve_position
from circuitdiscovery.task.prompts import Apart, draw
from circuitdiscovery.task.repeated import repeated_tokens
from circuitdiscovery.task.saved import FORMAT, Drawn, Kept, SavedTask, check_tokenizer
from circuitdiscovery.task.table import Table, table_of
from circuitdiscovery.task.taskfile import END, TaskFile, counterfactual_of, read_task, shipped_tasks
from circuitdiscovery.task.vocabulary import Vocabulary
from circuitdiscovery.values import plain, table

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Batch", "Example", "Task", "load_task", "shipped_tasks"]

# of a task that can draw as many as it likes: enough for a stable ranking, few enough for a CPU
EXAMPLES = 64
SHOWN = 10  # prompts that a notebook shows
PAD = -1  # in place of an answer where a row has fewer than the batch's longest
# behind a prompt that is shorter than the batch's longest; any token would do, for nothing looks ahead
PAD_TOKEN = 0


class HasTokenizer(Protocol):
    """What `load_task` asks of a model."""

    @property
    def tokenizer(self) -> Any: ...


@dataclass(frozen=True)
class Batch:
    """Examples as tensors: T tokens each, of which the first
    `lengths` are the prompt and the others are pads.

    Attention is causal, so that no position of a prompt sees a pad: each example runs as if it ran alone.

    Args:
        rows: [B], their indices in the task's examples.
        clean, corrupted: [B, T] token ids.
        position: [B], where the answer is read.
        correct, incorrect: [B, k] answer ids, padded with -1.
        lengths: [B], each prompt's own number of tokens.
    """

    rows: Tensor
    clean: Tensor
    corrupted: Tensor
    position: Tensor
    correct: Tensor
    incorrect: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def padded(self) -> bool:
        """Whether any prompt is shorter than the batch."""
        return int(self.lengths.min()) < self.clean.shape[1] if len(self) else False

    def by_length(self) -> Iterator[tuple[list[int], Batch]]:
        """(which of the examples, a batch of these alone without pads), length by length;
        where nothing is padded, the batch itself.
        """
        if not self.padded:
            yield list(range(len(self))), self
            return
        lengths = self.lengths.tolist()
        for length in sorted(set(lengths)):
            columns = [i for i, other in enumerate(lengths) if other == length]
            parts = {field.name: getattr(self, field.name)[columns] for field in fields(self)}
            yield (
                columns,
                Batch(**(parts | {name: parts[name][:, :length] for name in ("clean", "corrupted")})),
            )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


@dataclass(frozen=True, repr=False)
class Task:
    """Examples of a behaviour, and how it is measured.

    Args:
        name: a shipped task's, a file's without its suffix, or `tokens`.
        examples: what searches and `run_circuit` use, in this order.
        held_out: what `evaluate` uses, drawn apart: no clean prompt is in both; None where there is none.
        metric: the task's own.
        seed: of the drawing or of the split; None where nothing was random.
        info: what else is known, ready for JSON: version, source, counterfactual and
            what it asks, the words left out by list.
        others: further rows of its kind, in none of the examples, that means are
            taken over beside the examples themselves.
        apart: draws prompts of its kind that means are taken over; None where it has none but its rows.
    """

    name: str
    examples: tuple[Example, ...]
    held_out: Task | None = None
    metric: str = "logit_diff"
    seed: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    others: tuple[Example, ...] = field(default=(), compare=False)
    apart: Callable[[], tuple[Example, ...]] | None = field(default=None, compare=False)

    @classmethod
    def from_tokens(
        cls,
        *,
        clean: Any,
        corrupted: Any,
        correct: Any,
        incorrect: Any,
        position: Any = None,
        positions: Any = None,
        variables: Any = None,
    ) -> Task:
        """A task from token ids, used as given.

        Args:
            clean, corrupted: [n, T] integers, or a list of n sequences of
                any lengths, equal for the two of a row.
            correct, incorrect: [n], [n, k] padded with -1, or a list of n lists.
            position: where the answer is read: an integer for all rows or one per row,
                negative from the end; None: the last token.
            positions: further positions by name, such as {"IO": 3, "S2": [9, 10, ...]}, as `position`.
            variables: what the clean prompts are made of, a value per row, such as
                {"IO": ["Mary", "Anna", ...]}, taken as text.

        Raises:
            CircuitDiscoveryError: for anything else; names the row, counted from 0.

        >>> Task.from_tokens(clean=[[5, 6]], corrupted=[[5, 7]], correct=[1], incorrect=[2])
        <Task tokens: 1 example of 2 tokens, none held out, logit_diff>
        """
        sides = {"clean": _token_rows("clean", clean), "corrupted": _token_rows("corrupted", corrupted)}
        sides |= {
            "correct": _token_rows("correct", correct),
            "incorrect": _token_rows("incorrect", incorrect),
        }
        counts = {name: len(rows) for name, rows in sides.items()}
        if len(set(counts.values())) != 1 or not counts["clean"]:
            told = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise CircuitDiscoveryError(f"a task needs rows, as many of each, not {told}")
        answers = _positions("position", position, counts["clean"])
        rows = zip(*sides.values(), answers, strict=True)
        examples = [_token_example(f"row {i}", *row) for i, row in enumerate(rows)]
        return cls("tokens", tuple(_named(examples, positions or {}, variables or {})))

    @classmethod
    def from_prompts(
        cls,
        model: HasTokenizer,
        *,
        clean: Sequence[str],
        corrupted: Sequence[str],
        correct: Sequence[str | Sequence[str]],
        incorrect: Sequence[str | Sequence[str]],
        position: int | Sequence[int | None] | None = None,
        bos: bool | None = None,
    ) -> Task:
        """A task from texts, none of them held out.

        Args:
            model: whose tokenizer makes the tokens.
            clean, corrupted: n prompts each, of equally many tokens in a row.
            correct, incorrect: n answers each, or lists of answers, which continue the clean
                prompt as one token: " Mary", with its space.
            position: where the answer is read: an integer for all rows or one per row,
                negative from the end; None: the last token.
            bos: put the tokenizer's BOS in front, or take it away; None: as the tokenizer does.

        Raises:
            CircuitDiscoveryError: rows that cannot be used; counts them and names the first five.

        >>> import circuitdiscovery as cd
        >>> ask = "Mary and John met. {} gave a ring to"
        >>> prompts = {"clean": [ask.format("John")], "corrupted": [ask.format("Mary")]}
        >>> cd.Task.from_prompts(cd.load_model("toy"), **prompts, correct=[" Mary"], incorrect=[" John"])
        <Task prompts: 1 example of 10 tokens, none held out, logit_diff>
        """
        columns: dict[str, Any] = {
            "clean": clean,
            "corrupted": corrupted,
            "correct": correct,
            "incorrect": incorrect,
        }
        for name, values in columns.items():
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise CircuitDiscoveryError(
                    f"{name} must be a list of texts, one per row, not {type(values).__name__}"
                )
        rows = {name: list(values) for name, values in columns.items()}
        if len({len(values) for values in rows.values()}) != 1:
            told = ", ".join(f"{name} {len(values)}" for name, values in rows.items())
            raise CircuitDiscoveryError(f"a task needs rows, as many of each, not {told}")
        rows["position"] = _positions("position", position, len(rows["clean"]))
        records = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        table = table_of([_listed(record) for record in records], "prompts")
        examples, bad = _encoded(table, _encoder(model, "prompts", bos))
        table.refuse(bad)
        return cls("prompts", tuple(examples))

    @classmethod
    def from_pandas(
        cls,
        frame: Any,
        model: HasTokenizer,
        *,
        examples: int | None = None,
        seed: int = 0,
        bos: bool | None = None,
        metric: str | None = None,
        skip_bad: bool = False,
    ) -> Task:
        """A task from a DataFrame with the columns of a table: clean, corrupted, correct,
        incorrect and, where it is needed, position.

        Args:
            frame: a row per example; an answer's cell is a text, several with a bar between, or a list.
            model, examples, seed, bos, metric, skip_bad: as for `load_task`; half of the rows are held out.

        Raises:
            CircuitDiscoveryError: a column that is missing or unknown, rows that cannot be used; names them.
        """
        return load_task(
            frame, model, examples=examples, seed=seed, bos=bos, metric=metric, skip_bad=skip_bad
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        lengths = sorted({len(example.clean) for example in self.examples})
        tokens = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
        held = "none" if self.held_out is None else str(len(self.held_out))
        parts = [
            f"{len(self)} example{'s' * (len(self) > 1)} of {tokens} tokens",
            f"{held} held out",
            self.metric,
        ]
        parts += [f"counterfactual {self.info['counterfactual']}"] if "counterfactual" in self.info else []
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        parts += [f"{self.info['skipped']} bad rows left out"] if "skipped" in self.info else []
        return f"<Task {self.name}: {', '.join(parts)}{self._left_out()}>"

    def __getitem__(self, row: int) -> Example:
        """The example of a row."""
        return self.examples[row]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def to_dataframe(self) -> pd.DataFrame:
        """One row per example, then per held-out one: its part, text,
        token ids and position. Needs pandas."""
        parts = {"examples": self, "held_out": self.held_out}
        shown = ("text", "clean", "corrupted", "correct", "incorrect", "position")
        rows = [
            {"part": part} | {name: getattr(example, name) for name in shown}
            for part, task in parts.items()
            if task
            for example in task
        ]
        return data_frame(rows)

    @guarded
    def save(self, path: str | Path) -> None:
        """Write a .json file from which `load_task` makes the same task: its tokens, held-out
        examples, and what means are taken over.

        Prompts that are drawn apart for means are drawn now. Atomically, the same task the same bytes.

        >>> import circuitdiscovery as cd, os, tempfile
        >>> model, path = cd.load_model("toy"), os.path.join(tempfile.mkdtemp(), "mine.json")
        >>> task = cd.load_task("ioi", model, examples=4)
        >>> task.save(path)
        >>> cd.load_task(path, model) == task
        True
        """
        ending(path, ".json")
        numbers: dict[Example, int] = {}
        kept = _kept(self, numbers)
        write_json(path, plain(SavedTask(FORMAT, tuple(numbers), kept)))

    def _repr_html_(self) -> str:
        """The first prompts."""
        rows = [
            (
                row,
                each.text or " ".join(map(str, each.clean)),
                ", ".join(f"{name} = {word}" for name, word in each.variables.items()),
            )
            for row, each in enumerate(self.examples[:SHOWN])
        ]
        rest = f"; {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return table(rows, head=("row", "clean", "made of"), note=repr(self)[1:-1] + rest)

    def _left_out(self) -> str:
        left_out: Mapping[str, Sequence[str]] = self.info.get("left_out", {})
        told = [
            f"{len(words)} of {name} ({', '.join(words[:3])}{', ...' if len(words) > 3 else ''})"
            for name, words in left_out.items()
        ]
        return "; words left out: " + ", ".join(told) if told else ""

    @property
    def digest(self) -> str:
        """Of the examples' tokens, answers and positions, and of the
        rows beside them that means are taken over.
        """
        rows = [
            (e.clean, e.corrupted, e.position, e.correct, e.incorrect) for e in (*self.examples, *self.others)
        ]
        return sha256(repr(rows).encode()).hexdigest()[:16]

    def select(self, rows: Sequence[int]) -> Task:
        """The task with these of its examples and none held out; means
        are taken over the same prompts as before.
        """
        chosen = set(rows)
        others = (*self.others, *(example for row, example in enumerate(self.examples) if row not in chosen))
        return replace(self, examples=tuple(self.examples[row] for row in rows), held_out=None, others=others)

    def batches(
        self, batch_size: int | None = None, rows: Sequence[int] | None = None, *, run_tokens: float = 0.0
    ) -> Iterator[Batch]:
        """The examples as tensors, at most `batch_size` at once: those of one
        length together, in order, without pads.

        Args:
            batch_size: None puts no bound.
            rows: only these of the examples.
            run_tokens: how many tokens a run of one batch more costs. Lengths share a batch, the shortest
                first and padded on the right, where their pads are fewer than that.
        """
        if batch_size is not None and (type(batch_size) is not int or batch_size < 1):
            raise CircuitDiscoveryError(f"batch_size must be at least 1, not {batch_size}")
        by_length: dict[int, list[int]] = {}
        for row in range(len(self)) if rows is None else rows:
            by_length.setdefault(len(self.examples[row].clean), []).append(row)
        groups = list(by_length.values())
        if run_tokens > 0 and len(groups) > 1:
            counts = [(length, len(group)) for length, group in sorted(by_length.items())]
            shared = _cheapest(counts, batch_size or len(self), run_tokens)
            groups = [[row for length in lengths for row in by_length[length]] for lengths in shared]
        for group in groups:
            size = batch_size or len(group)
            yield from (self._batch(group[start : start + size]) for start in range(0, len(group), size))

    def _batch(self, rows: list[int]) -> Batch:
        examples = [self.examples[row] for row in rows]
        lengths = [len(example.clean) for example in examples]
        # [B, T]
        clean, corrupted = (
            _filled([getattr(e, side) for e in examples], PAD_TOKEN) for side in ("clean", "corrupted")
        )
        position = torch.tensor([example.position for example in examples])  # [B]
        # [B, k]
        correct, incorrect = (
            _filled([getattr(e, side) for e in examples], PAD) for side in ("correct", "incorrect")
        )
        return Batch(
            torch.tensor(rows), clean, corrupted, position, correct, incorrect, torch.tensor(lengths)
        )

    def check(self, vocab_size: int, n_positions: int | None = None) -> None:
        """Raise an error that names the row where a token is not in the vocabulary or a
        prompt is longer than the model can read.
        """
        for row, example in enumerate(self.examples):
            where = f"task {self.name}, row {row}"
            if n_positions is not None and len(example.clean) > n_positions:
                raise CircuitDiscoveryError(
                    f"{where}: has {len(example.clean)} tokens, but the model reads at most {n_positions}"
                )
            for name in ("clean", "corrupted", "correct", "incorrect"):
                worst = max(getattr(example, name))
                if worst >= vocab_size:
                    raise CircuitDiscoveryError(
                        f"{where}: {name} has token {worst}, but the model's vocabulary has {vocab_size}"
                    )
        if self.held_out is not None:
            self.held_out.check(vocab_size, n_positions)


def _filled(rows: Sequence[tuple[int, ...]], value: int) -> Tensor:
    """[n, longest]: the rows, with a value behind those that are shorter."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _cheapest(counts: Sequence[tuple[int, int]], batch_size: int, run_tokens: float) -> list[list[int]]:
    """The lengths of (length, how many) ascending, in groups: those that cost the fewest
    tokens, pads and `run_tokens` a batch included.

    By dynamic programming over where a group begins and ends.
    """
    lengths = np.repeat([length for length, _ in counts], [count for _, count in counts])  # of all rows
    ends = np.cumsum([0, *(count for _, count in counts)])
    # of the first so many lengths: (tokens, where the last group begins)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(ends)):
        options: list[tuple[float, int]] = []
        for start in range(stop):
            # where each batch ends
            last = np.minimum(np.arange(ends[start], ends[stop], batch_size) + batch_size, ends[stop])
            sizes = np.diff(last, prepend=ends[start])
            options.append(
                (best[start][0] + float(sizes @ lengths[last - 1]) + run_tokens * len(last), start)
            )
        best.append(min(options, key=lambda option: (option[0], -option[1])))
    groups, stop = [], len(counts)
    while stop:
        groups.insert(0, [length for length, _ in counts[best[stop][1] : stop]])
        stop = best[stop][1]
    return groups


# ----------------------------------------------------------------------- tokens


def _plain(value: Any) -> Any:
    """Tensors and arrays as (nested) Python values."""
    return value.tolist() if hasattr(value, "tolist") else value


def _token_rows(name: str, value: Any) -> list[tuple[int, ...]]:
    rows = _plain(value)
    if not isinstance(rows, list | tuple):
        raise CircuitDiscoveryError(
            f"{name} must be a list or a tensor with a row per example, not {type(rows).__name__}"
        )
    answers = name in ("correct", "incorrect")
    return [_token_row(f"{name}, row {i}", _plain(row), answers) for i, row in enumerate(rows)]


def _token_row(where: str, row: Any, answers: bool) -> tuple[int, ...]:
    values = [row] if answers and type(row) is int else row
    if not isinstance(values, list | tuple):
        texts = "; for texts there is Task.from_prompts(model, ...)" if isinstance(row, str) else ""
        raise CircuitDiscoveryError(f"{where}: must be token ids, not {type(row).__name__}{texts}")
    ids = [_plain(value) for value in values]
    for value in ids:
        if type(value) is not int or value < (PAD if answers else 0):
            raise CircuitDiscoveryError(
                f"{where}: must be token ids, not "
                f"{value if isinstance(value, int | float) else type(value).__name__}"
            )
    found = tuple(dict.fromkeys(i for i in ids if i != PAD)) if answers else tuple(ids)
    if not found:
        raise CircuitDiscoveryError(f"{where}: has no {'answer' if answers else 'token'}")
    return found


def _positions(what: str, position: Any, count: int) -> list[int | None]:
    value = _plain(position)
    values: list[Any] = (
        [_plain(each) for each in value] if isinstance(value, list | tuple) else [value] * count
    )
    if len(values) != count:
        raise CircuitDiscoveryError(f"{what} has {len(values)} rows, but clean has {count}")
    for row, each in enumerate(values):
        if each is not None and type(each) is not int:
            raise CircuitDiscoveryError(f"{what}, row {row}: must be a whole number, not {each!r}")
    return values


def _named(
    examples: list[Example], positions: Mapping[str, Any], variables: Mapping[str, Sequence[Any]]
) -> Iterator[Example]:
    """The examples with their named positions and variables."""
    for what, named in (("positions", positions), ("variables", variables)):
        if not isinstance(named, Mapping):
            raise CircuitDiscoveryError(
                f"{what} must be a mapping from names to values, not {type(named).__name__}"
            )
    if END in positions:
        raise CircuitDiscoveryError(f"positions: {END} is the answer's position, which has that name already")
    columns = {
        name: _positions(f"positions[{name!r}]", value, len(examples)) for name, value in positions.items()
    }
    for name, values in variables.items():
        if isinstance(values, str) or len(_plain(values)) != len(examples):
            raise CircuitDiscoveryError(f"variables[{name!r}] must hold a value per row, {len(examples)}")
    for row, example in enumerate(examples):
        length = len(example.clean)
        places = {
            name: resolve_position(column[row], length, f"positions[{name!r}], row {row}")
            for name, column in columns.items()
        }
        yield replace(
            example,
            positions=places,
            variables={name: str(_plain(values)[row]) for name, values in variables.items()},
        )


def _token_example(
    where: str,
    clean: tuple[int, ...],
    corrupted: tuple[int, ...],
    correct: tuple[int, ...],
    incorrect: tuple[int, ...],
    position: int | None,
) -> Example:
    if len(clean) != len(corrupted):
        told = f"{list(clean)} and {list(corrupted)}"
        raise CircuitDiscoveryError(
            f"{where}: clean has {len(clean)} tokens and corrupted {len(corrupted)}: {told}"
        )
    both = set(correct) & set(incorrect)
    if both:
        raise CircuitDiscoveryError(f"{where}: correct and incorrect are the same token {min(both)}")
    return Example(clean, corrupted, correct, incorrect, resolve_position(position, len(clean), where))


# ---------------------------------------------------------------------- loading


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

    Raises:
        CircuitDiscoveryError: for a broken file, rows that do not fit (counted, the first
            five named), or an option that is not valid.
    """
    if examples is not None and (type(examples) is not int or examples < 1):
        raise CircuitDiscoveryError(f"examples must be a whole number of at least 1, not {examples}")
    records = _records(name_or_path)
    source = (
        read_task(name_or_path, skip_bad=True)
        if records is None
        else table_of(records, "table", skip_bad=True)
    )
    if not isinstance(source, TaskFile) and counterfactual is not None:
        counterfactual_of(source, counterfactual)
    if isinstance(source, SavedTask):
        task = _from_saved(source, model, examples, bos)
    elif isinstance(source, Table):
        task = _from_table(source, _encoder(model, source.name, bos), examples, seed, skip_bad)
    else:
        encoder = _encoder(model, source.name, source.bos if bos is None else bos)
        task = _from_file(source, encoder, examples, seed, counterfactual or source.counterfactual)
    if all(
        example.clean == example.corrupted
        for part in (task, task.held_out)
        if part is not None
        for example in part.examples
    ):
        raise CircuitDiscoveryError(
            f"task {task.name}: every corrupted prompt is its clean prompt, so there is nothing to explain"
        )
    return replace(task, metric=canonical("metric", metric)) if metric is not None else task


def _encoder(model: HasTokenizer, name: str, bos: bool | None) -> Encoder:
    if model.tokenizer is None:
        raise CircuitDiscoveryError(
            f"task {name} is text, but the model has no tokenizer; give tokens with Task.from_tokens"
        )
    return Encoder(model.tokenizer, bos)


def _records(given: Any) -> Sequence[Any] | None:
    """The rows of a DataFrame, or of a list; None for anything else."""
    if hasattr(given, "to_dict") and hasattr(given, "columns"):
        return given.to_dict("records")
    return given if isinstance(given, list | tuple) else None


def _listed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose answers are lists: a text is one answer, bars and all."""
    answers = {
        side: [record[side]] if isinstance(record[side], str) else _plain(record[side])
        for side in ("correct", "incorrect")
    }
    return {
        **record,
        **{side: list(value) if isinstance(value, tuple) else value for side, value in answers.items()},
    }


def _encoded(table: Table, encoder: Encoder) -> tuple[list[Example], list[tuple[int, str]]]:
    """(the examples of the rows that can be used, the numbers of the others and why)."""
    found, bad = list[Example](), list(table.bad)
    for row in table.rows:
        try:
            found.append(encoder.example(row))
        except CircuitDiscoveryError as error:
            bad.append((row.number, str(error)))
    return found, bad


def _from_table(table: Table, encoder: Encoder, examples: int | None, seed: int, skip_bad: bool) -> Task:
    """Half of the distinct clean prompts by the seed, with all rows of each; the others are held out."""
    everything, bad = _encoded(table, encoder)
    if not (skip_bad and everything):
        table.refuse(bad)
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(everything):
        rows_of.setdefault(example.clean, []).append(row)
    prompts = list(rows_of.values())
    Random(f"{seed}").shuffle(prompts)
    half = (len(prompts) + 1) // 2
    parts = [[row for rows in some for row in rows] for some in (prompts[:half], prompts[half:])]
    if examples is not None and examples > len(parts[0]):
        raise CircuitDiscoveryError(
            f"examples must be from 1 to {len(parts[0])}, not {examples}: {table.name} has "
            f"{len(everything)} rows, and half are held out"
        )
    chosen, held = (tuple(everything[row] for row in sorted(rows[:examples])) for rows in parts)
    used = {row for rows in parts for row in rows[:examples]}
    rest = tuple(example for row, example in enumerate(everything) if row not in used)
    task = Task(table.name, chosen, seed=seed, others=rest, info={"skipped": len(bad)} if bad else {})
    return replace(task, held_out=replace(task, examples=held)) if held else task


def _kept(task: Task, numbers: dict[Example, int]) -> Kept:
    """A task as its file has it; its prompts are numbered in `numbers`."""

    def indices(examples: Iterable[Example]) -> tuple[int, ...]:
        return tuple(numbers.setdefault(example, len(numbers)) for example in examples)

    examples, others = indices(task.examples), indices(task.others)
    apart = None if task.apart is None else indices(task.apart())
    held_out = None if task.held_out is None else _kept(task.held_out, numbers)
    return Kept(task.name, task.metric, task.seed, task.info, examples, others, apart, held_out)


def _from_saved(saved: SavedTask, model: HasTokenizer, examples: int | None, bos: bool | None) -> Task:
    """The task as it was; the first of its examples, and of those held out, where fewer are asked for."""
    if bos is not None:
        raise CircuitDiscoveryError(
            f"task {saved.name}: a saved task has the BOS that its tokens begin with; bos is for texts"
        )
    if model.tokenizer is not None:
        check_tokenizer(saved, model.tokenizer)

    def made(kept: Kept) -> Task:
        held_out = None if kept.held_out is None else made(kept.held_out)
        apart = None if kept.apart is None else Drawn(saved.examples(kept.apart))
        prompts, others = saved.examples(kept.examples), saved.examples(kept.others)
        return Task(kept.name, prompts, held_out, kept.metric, kept.seed, kept.info, others, apart)

    task = made(saved.task)
    if examples is None or examples == len(task):
        return task
    if examples > len(task):
        raise CircuitDiscoveryError(
            f"examples must be from 1 to {len(task)}, not {examples}: so many were saved of task {task.name}"
        )
    held = task.held_out
    return replace(
        task.select(range(examples)),
        held_out=None if held is None else held.select(range(min(examples, len(held)))),
    )


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
    """Twice as many as asked for, or an error that says how many there are; not asked, at most twice 64."""
    count = 2 * (examples or EXAMPLES)
    if file.generator is not None and file.generator.kind == "repeated_tokens":
        return tuple(islice(repeated_tokens(file, encoder, seed=seed), count)), Vocabulary({}, {})
    most, vocab, rows = draw(file, encoder, counterfactual=counterfactual, seed=seed)
    found = tuple(islice(rows, count)) if count <= most or examples is None else ()
    if len(found) < count and (examples is not None or not found):
        there = len(found) or most
        told = (
            f"the task {file.name} makes {there} different prompts with this tokenizer, and half are held out"
        )
        raise CircuitDiscoveryError(f"examples must be from 1 to {there // 2}, not {count // 2}: {told}")
    return found, vocab
