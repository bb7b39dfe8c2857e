"""A task: pairs of clean and corrupted prompts with their right and wrong answers, as tokens.

task = Task.from_tokens(clean=..., corrupted=..., correct=..., incorrect=...)
task = Task.from_prompts(model, clean=..., corrupted=..., correct=..., incorrect=...)
task = load_task("ioi", model)     see `task.load`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.files.disk import data_frame, ending
from circuitdiscovery.task.batch import Batch, batches
from circuitdiscovery.task.example import Example
from circuitdiscovery.task.line import in_a_line
from circuitdiscovery.task.saved import write_saved
from circuitdiscovery.task.table import table_of
from circuitdiscovery.task.tokenization import HasTokenizer, encoder_of
from circuitdiscovery.task.tokens import examples_of_tokens, positions_of_rows
from circuitdiscovery.values import table

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 10  # prompts that a notebook shows


@dataclass(frozen=True, repr=False)
class Task:
    """Examples of a behaviour, and how it is measured.

    Args:
        name: a shipped task's, a file's without its suffix, or `tokens`.
        examples: what searches and `run_circuit` use, in this order.
        held_out: what `evaluate` uses, drawn apart: no clean prompt is in both, but one of them may be the
            corrupted prompt of an example, and `print(task)` says how many are; None where there is none.
        metric: the task's own, and that of what is held out of it.
        seed: of the drawing or of the split; None where nothing was random.
        info: what else is known, ready for JSON: version, source, counterfactual and
            what it asks, the words left out by list.
        others: further rows of its kind, in none of the examples, that means are
            taken over, as well as the examples themselves.
        apart: draws prompts that means are taken over, for a part those of the whole task; None where it has
            none but its rows.
        part: what its examples have in common, such as {"order": "ABBA"}; empty but for a part (`by`).
        chosen: whether its rows were chosen by number (`select`), so that no further prompt is of its kind.
    """

    name: str
    examples: tuple[Example, ...]
    held_out: Task | None = None
    metric: str = "logit_diff"
    seed: int | None = None
    info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    others: tuple[Example, ...] = field(default=(), compare=False)
    apart: Callable[[], tuple[Example, ...]] | None = field(default=None, compare=False)
    part: Mapping[str, str] = field(default_factory=dict, hash=False)
    chosen: bool = False

    def __post_init__(self) -> None:
        if not self.examples:
            raise CircuitDiscoveryError(f"the task {self.name} must have an example at least")
        if self.held_out is not None and self.held_out.metric != self.metric:
            object.__setattr__(self, "held_out", replace(self.held_out, metric=self.metric))

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
        sides = {"clean": clean, "corrupted": corrupted, "correct": correct, "incorrect": incorrect}
        return cls("tokens", examples_of_tokens(sides, position, positions or {}, variables or {}))

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
        skip_bad: bool = False,
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
            skip_bad: go on without the rows that cannot be used; `info["skipped"]` says how many these are.

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
        rows["position"] = positions_of_rows("position", position, len(rows["clean"]))
        records = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        table = table_of([_listed(record) for record in records], "prompts", skip_bad=skip_bad)
        examples, bad = encoder_of(model, "prompts", bos).usable(table, skip_bad)
        return cls("prompts", tuple(examples), info={"skipped": bad} if bad else {})

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
        from circuitdiscovery.task.load import load_task

        return load_task(
            frame, model, examples=examples, seed=seed, bos=bos, metric=metric, skip_bad=skip_bad
        )

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"<Task {in_a_line(self)}>"

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

        Raises:
            CircuitDiscoveryError: a metric that is not a name, or info that JSON does not have.

        >>> import circuitdiscovery as cd, os, tempfile
        >>> model, path = cd.load_model("toy"), os.path.join(tempfile.mkdtemp(), "mine.json")
        >>> task = cd.load_task("ioi", model, examples=4)
        >>> task.save(path)
        >>> cd.load_task(path, model) == task
        True
        """
        ending(path, ".json")
        write_saved(path, self)

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

    @property
    def different(self) -> int:
        """How many different clean prompts the examples have."""
        return len({example.clean for example in self.examples})

    @property
    def title(self) -> str:
        """The name, for a part with what it is of, such as `ioi, order ABBA`."""
        return ", ".join([self.name, *(f"{what} {value}" for what, value in self.part.items())])

    def further(self) -> tuple[Example, ...]:
        """Of the prompts that are drawn apart those of its own kind, which a search may learn from as well:
        for a part those that have in common what its examples have.
        """
        if self.apart is None or self.chosen:
            return ()
        return tuple(each for each in self.apart() if self.part.items() <= each.variables.items())

    @property
    def digest(self) -> str:
        """Of the examples' tokens, answers and positions, and of the
        rows beside them that means are taken over.
        """
        rows = [
            (e.clean, e.corrupted, e.position, e.correct, e.incorrect) for e in (*self.examples, *self.others)
        ]
        return sha256(repr(rows).encode()).hexdigest()[:16]

    @guarded
    def select(self, rows: Sequence[int]) -> Task:
        """The task with these of its examples and none held out; means are taken over the same prompts as
        before. Searches draw no further prompts of it: which are of its kind only its rows say.

        Args:
            rows: their numbers, from 0, negative ones from the end, in any order and as often as wanted.

        Raises:
            CircuitDiscoveryError: none at all, or one that the task does not have.
        """
        count = len(self)
        if wrong := [row for row in rows if not -count <= row < count]:
            told = f"rows must be from 0 to {count - 1}, or from -{count} to -1"
            raise CircuitDiscoveryError(f"{told}, not {wrong[0]}: task {self.title} has {count}")
        return replace(self.subset([row % count for row in rows]), chosen=True)

    def subset(self, rows: Sequence[int]) -> Task:
        """As `select`, of rows from 0 on that are of the task's own kind, such as the first ones or a draw:
        searches draw further prompts of it as of the task.
        """
        chosen = set(rows)
        others = (*self.others, *(example for row, example in enumerate(self.examples) if row not in chosen))
        return replace(self, examples=tuple(self.examples[row] for row in rows), held_out=None, others=others)

    @guarded
    def by(self, what: str = "template") -> dict[str, Task]:
        """The task in parts: one for each template, or for each value of something else that prompts are
        made of.

        Args:
            what: `template`, `order`, `case` or a word's name, as in the examples' `variables`.

        Returns:
            value -> task. The held-out examples of a part are those of its value; where none has it, none are
            held out. Means are taken over the same prompts as before, and what a search draws beside the
            examples is of the part.

        Raises:
            CircuitDiscoveryError: examples of which that is not known; it names what is.

        >>> import circuitdiscovery as cd
        >>> parts = cd.load_task("ioi", cd.load_model("toy")).by("order")
        >>> {order: len(part) for order, part in parts.items()}
        {'ABBA': 32, 'BABA': 32}
        """
        found = dict[str, Task]()
        held_out = {} if self.held_out is None else self.held_out._rows_by(what)
        for value, rows in sorted(self._rows_by(what).items(), key=lambda each: _in_order(each[0])):
            known = {**self.part, what: value}
            part = replace(self.subset(rows), part=known)
            if self.held_out is not None and value in held_out:
                held = replace(self.held_out.subset(held_out[value]), part=known)
                part = replace(part, held_out=held)
            found[value] = part
        return found

    def _rows_by(self, what: str) -> dict[str, list[int]]:
        """Which rows have each value of a variable."""
        found = dict[str, list[int]]()
        for row, example in enumerate(self.examples):
            if what not in example.variables:
                where = f"task {self.title}, row {row}"
                if not example.variables:
                    raise CircuitDiscoveryError(f"{where}: it is not known what the prompt is made of")
                raise CircuitDiscoveryError(f"{where}: {unknown('variable', what, example.variables)}")
            found.setdefault(example.variables[what], []).append(row)
        return found

    def batches(
        self, batch_size: int | None = None, rows: Sequence[int] | None = None, *, run_tokens: float = 0.0
    ) -> Iterator[Batch]:
        """The examples as tensors, at most `batch_size` at once: those of one length together, in order,
        without pads.

        Args:
            batch_size: None puts no bound.
            rows: only these of the examples.
            run_tokens: how many tokens a run of one batch more costs. Lengths share a batch, the shortest
                first and padded on the right, where their pads are fewer than that.
        """
        chosen = range(len(self)) if rows is None else rows
        return batches(self.examples, chosen, batch_size, run_tokens)

    def check(self, vocab_size: int, n_positions: int | None = None) -> None:
        """Raise an error that names the row where a token is not in the vocabulary or a
        prompt is longer than the model can read.
        """
        for row, example in enumerate(self.examples):
            where = f"task {self.title}, row {row}"
            if n_positions is not None and len(example.clean) > n_positions:
                raise CircuitDiscoveryError(
                    f"{where}: has {len(example.clean)} tokens, but the model reads at most {n_positions}"
                )
            for name in ("clean", "corrupted", "correct", "incorrect"):
                worst = max(getattr(example, name), default=0)
                if worst >= vocab_size:
                    raise CircuitDiscoveryError(
                        f"{where}: {name} has token {worst}, but the model's vocabulary has {vocab_size}"
                    )
        if self.held_out is not None:
            self.held_out.check(vocab_size, n_positions)


def _in_order(value: str) -> tuple[float, str]:
    """Numbers come first, the least before."""
    return int(value) if value.isdecimal() else math.inf, value


def _listed(record: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose answers are lists: a text is one answer, bars and all."""
    answers = {side: record[side] for side in ("correct", "incorrect")}
    return {**record, **{side: [each] if isinstance(each, str) else each for side, each in answers.items()}}
