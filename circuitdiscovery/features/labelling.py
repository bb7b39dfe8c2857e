"""Labels for probes: of shipped tasks' prompts, of the words in any texts, of whole texts, and from a table.

What is known of words (part of speech, number, tense, gender) comes from the shipped tasks' own word
lists, of which labels.toml says what their words are; it adds the words between them.
"""

from __future__ import annotations

import csv
import io
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.features.collecting import Activations
from circuitdiscovery.features.forward import forward, has_inner, site_of
from circuitdiscovery.features.prompts import Prompts, batches, prompts_of
from circuitdiscovery.files.disk import read_text
from circuitdiscovery.model.model import Model
from circuitdiscovery.task.read import read_task
from circuitdiscovery.task.task import Task
from circuitdiscovery.task.taskfile import PLAIN, TaskFile
from circuitdiscovery.task.tokenization import Encoder, encoder_of
from circuitdiscovery.values import Value

ATTRIBUTES = ("part_of_speech", "number", "tense", "gender")  # that are known of words
COLUMNS = ("text", "token", "label")
_WORD = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, repr=False)
class Labels(Value):
    """A label for each row of activations.

    Args:
        name: what they are called.
        values: the labels.
        types: what the control's random labels are fixed by (the word that a label is of); None: the token.
        groups: what a split must not share; None: every row is alone.
        prompts: token ids, where the labels bring their prompts; else empty.
        rows, positions: then of each label its prompt and its position there.
    """

    name: str
    values: tuple[str, ...]
    types: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None
    prompts: tuple[tuple[int, ...], ...] = field(default=())
    rows: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __str__(self) -> str:
        counts = {each: self.values.count(each) for each in sorted(set(self.values))}
        told = ", ".join(f"{count} {each}" for each, count in counts.items())
        return f"{self.name}: {len(self)} labels, {told}"

    @guarded
    def activations(self, model: Model, at: str, *, batch_size: int | None = None) -> Activations:
        """What stands at a site where these labels are: of words, whole texts and tables, which bring their
        prompts; those of a task are for `cd.features.activations(model, task, at)`.

        Args:
            model: the one whose tokens the prompts are.
            at: the site.
            batch_size: how many prompts are run at once.

        Raises:
            CircuitDiscoveryError: labels without prompts, an unknown site.

        >>> import circuitdiscovery as cd
        >>> model = cd.load_model("toy")
        >>> words = cd.features.word_labels(model, ["The keys are on the table."], "number")
        >>> words.values, words.activations(model, "resid1")
        (('plural', 'singular'), <Activations at resid1: 2 rows of 128>)
        """
        if not self.prompts:
            raise CircuitDiscoveryError(
                f"the labels {self.name} have no prompts of their own: use features.activations of the task"
            )
        places = tuple(zip(self.rows, self.positions, strict=True))
        return next(collected(model, Prompts(self.prompts), places, [at], batch_size))


def collected(
    model: Model,
    prompts: Prompts,
    places: Sequence[tuple[int, int]],
    sites: Sequence[str],
    batch_size: int | None = None,
) -> Iterator[Activations]:
    """The activations at several sites, of one run of the prompts.

    Args:
        model: a loaded model.
        prompts: its tokens.
        places: (prompt, position) of each row.
        sites: where.
        batch_size: how many prompts are run at once.
    """
    found = [site_of(model, each) for each in sites]
    wanted = list(dict.fromkeys(each.place for each in found))
    by_prompt: dict[int, list[int]] = {}
    for row, (prompt, _) in enumerate(places):
        by_prompt.setdefault(prompt, []).append(row)
    values: dict[str, Tensor] = {}
    for some, tokens in batches(model, prompts.rows, batch_size):
        here = [(i, row) for i, prompt in enumerate(some) for row in by_prompt.get(prompt, [])]
        if not here:
            continue
        which, at = [i for i, _ in here], [places[row][1] for _, row in here]
        read = forward(model, tokens, wanted)
        for site in found:
            own = site.of(read[site.place])
            own = (own[..., None] if own.dim() == 2 else own)[which, at].cpu()
            if site.name not in values:
                values[site.name] = own.new_empty(len(places), own.shape[-1])
            values[site.name][[row for _, row in here]] = own
    rows, positions = (torch.tensor([place[i] for place in places]) for i in (0, 1))
    for site in found:
        normed = has_inner(model, site.place)
        own = (values[site.name],)
        yield Activations(site.name, prompts.rows, rows, positions, own, model.digest, normed=normed)


# ------------------------------------------------------------------ of a task's prompts


@guarded
def labels(task: Task, name: str, *, of: str | None = None) -> Labels:
    """A label of each prompt of a task.

    Args:
        task: with prompts made of words, as the shipped ones are.
        name: one of the task's own labels (`number` and `attractor_number` of subject_verb_agreement,
            `repeated` of ioi: the first or the second name, `gender` of gendered_pronoun, `tens`, `units` and
            `century` of greater_than); what is known of words (`part_of_speech`, `number`, `tense`,
            `gender`), of the word that `of` names; or any variable of the prompts, such as `case` or `IO`.
        of: the variable whose word the label is of, by which control labels are fixed.

    Returns:
        The labels, in the order of the prompts.

    Raises:
        CircuitDiscoveryError: no such label or variable; a word of which it is not known.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> task = cd.load_task("subject_verb_agreement", model, examples=8)
    >>> print(cd.features.labels(task, "number"))
    number: 8 labels, 4 plural, 4 singular
    """
    examples = task.examples
    known = [name for name in examples[0].variables if all(name in each.variables for each in examples)]
    if not known:
        raise CircuitDiscoveryError(f"task {task.title} does not say what its prompts are made of")
    shipped: Mapping[str, Mapping[str, Any]] = _file()["tasks"].get(task.name, {})
    # a task of that name may be of other prompts
    needed = {label: {*rule} & {"word", "variable", "of"} for label, rule in shipped.items()}
    own = {label: rule for label, rule in shipped.items() if {rule[use] for use in needed[label]} <= {*known}}
    for variable in [] if of is None else [of]:
        if variable not in known:
            raise unknown("variable", variable, known)
    if name in own and of is None:
        rule: Mapping[str, Any] = own[name]
    elif name in ATTRIBUTES and of is not None:
        rule = {"word": of}
    elif name in known:
        rule = {"variable": name} if of is None else {"variable": name, "of": of}
    else:
        raise unknown("label", name, [*own, *(each for each in known if each not in own)])

    def column(variable: str) -> tuple[str, ...]:
        return tuple(each.variables[variable] for each in examples)

    if "word" in rule:
        words = column(rule["word"])
        return Labels(name, tuple(_known(word, rule.get("attribute", name)) for word in words), words)
    values = column(rule["variable"])
    names = rule.get("values", {})
    values = tuple(names.get(each, each) for each in values)
    if "digit" in rule:
        values = tuple(each[rule["digit"]] for each in values)
    return Labels(name, values, column(rule.get("of", rule["variable"])))


def _known(word: str, attribute: str) -> str:
    found = lexicon(attribute).get(word.lower())
    if found is None:
        raise CircuitDiscoveryError(f"the {attribute} of {shown(word)} is not known")
    return found


@cache
def _file() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("labels.toml").read_text("utf-8"))


@cache
def lexicon(attribute: str) -> Mapping[str, str]:
    """Word in lower case -> its class, of the words of the shipped tasks; a word of two classes is left out.

    >>> lexicon("number")["keys"], lexicon("gender")["lily"]
    ('plural', 'female')
    """
    found: dict[str, set[str]] = {}
    for words, known in _classes():
        if attribute in known:
            for word in words:
                found.setdefault(word.lower(), set()).add(known[attribute])
    return {word: next(iter(each)) for word, each in found.items() if len(each) == 1}


def _classes() -> Iterator[tuple[Iterable[str], Mapping[str, str]]]:
    """(words, what they are)."""
    for name, known in _file()["lists"].items():
        task, part, column = (*name.split(" "), PLAIN)[:3]
        read = read_task(task)
        assert isinstance(read, TaskFile)
        yield read.words[part][column], known
    for each in _file()["words"]:
        yield each["words"], each["is"]


# ------------------------------------------------------------------ of words, of texts, from a table


@guarded
def word_labels(model: Model, task_or_texts: Any, name: str, *, first: bool = False) -> Labels:
    """A label of each word that is known: of those that are a task's prompts, or texts.

    Args:
        model: whose tokens are labelled: the last of each word.
        task_or_texts: a task, whose clean prompts are meant as they are, with its BOS or without, or texts.
        name: `part_of_speech`, `number` (of nouns), `tense` (of verbs) or `gender` (of names, nouns and
            pronouns).
        first: whether a word that is a prompt's first token counts; see `activations`.

    Returns:
        The labels with their prompts; their types are the words.

    Raises:
        CircuitDiscoveryError: another name; prompts that are no texts; no word that is known.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> print(cd.features.word_labels(model, ["Mary gave a ring to John."], "part_of_speech"))
    part_of_speech: 5 labels, 1 determiner, 1 noun, 1 preposition, 1 proper noun, 1 verb
    """
    if name not in ATTRIBUTES:
        raise unknown("label", name, ATTRIBUTES, plural="labels of words")
    texts = _texts(task_or_texts)
    task = task_or_texts if isinstance(task_or_texts, Task) else None
    prompts, known = prompts_of(model, task or texts, "task_or_texts"), lexicon(name)
    # whether a prompt begins with BOS is a task's own
    encoders = {bos: encoder_of(model, task.name if task else "texts", bos) for bos in (True, False)}
    found: list[tuple[str, str, int, int]] = []
    for row, (text, ids) in enumerate(zip(texts, prompts.rows, strict=True)):
        encoder = encoders[ids[0] == model.tokenizer.bos_token_id]
        for word in _WORD.finditer(text):
            label = known.get(word[0].lower())
            place = None if label is None else encoder.index(text, word.end(), ids)
            if label is not None and place is not None and (first or place):
                found.append((label, word[0].lower(), row, place))
    if not found:
        raise CircuitDiscoveryError(f"the {name} of no word in these {len(texts)} texts is known")
    values, types, rows, places = zip(*found, strict=True)
    return Labels(name, values, types, None, prompts.rows, rows, places)


def _texts(given: Any) -> list[str]:
    """The texts of prompts."""
    texts = [each.text for each in given.examples] if isinstance(given, Task) else given
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Iterable) or isinstance(texts, bytes | Mapping):
        raise CircuitDiscoveryError(f"task_or_texts must be a task or texts, not {shown(given)}")
    texts = list(texts)
    if not texts or not all(isinstance(each, str) and each for each in texts):
        raise CircuitDiscoveryError("labels of words need prompts that are texts")
    return texts


@guarded
def text_labels(model: Model, kinds: Mapping[str, Any], *, name: str = "kind") -> Labels:
    """A label of each token by the kind of its text, such as code against prose.

    A text's tokens are held out together. Its first token is left out.

    Args:
        model: whose tokens they are.
        kinds: label -> texts, such as {"code": [...], "latex": [...], "prose": [...]}.
        name: what the labels are called.

    Returns:
        The labels with their prompts.

    Raises:
        CircuitDiscoveryError: a text with a token that the model does not have, or with no second one.

    >>> import circuitdiscovery as cd
    >>> kinds = {"past": ["The dog was here."], "present": ["The dog is here.", "The cat is here."]}
    >>> print(cd.features.text_labels(cd.load_model("toy"), kinds, name="tense"))
    tense: 12 labels, 4 past, 8 present
    """
    pairs = [(str(kind), text) for kind, texts in kinds.items() for text in _texts(texts)]
    prompts = prompts_of(model, [text for _, text in pairs], "kinds")
    for (kind, text), row in zip(pairs, prompts.rows, strict=True):
        if len(row) < 2:
            raise CircuitDiscoveryError(f"kinds, label {kind!r}: {shown(text)} has no second token")
    found = [
        (kind, row, place)
        for row, (kind, _) in enumerate(pairs)
        for place in range(1, len(prompts.rows[row]))
    ]
    values, rows, places = zip(*found, strict=True)
    return Labels(name, values, None, tuple(map(str, rows)), prompts.rows, rows, places)


@guarded
def labels_from_csv(path: str | Path, model: Model) -> Labels:
    """Labels from a table with the columns text, token and label.

    Args:
        path: a CSV file; `token` is a word of the text that stands there once (its last token is meant), a
            token's number from 0, negative from the end, or empty: the last one.
        model: whose tokens they are.

    Returns:
        The labels with their prompts, called as the file; the types of a table of words are the words.

    Raises:
        CircuitDiscoveryError: a column that is missing, a row without a label, a token that is not in its
            text; it names the row.

    >>> import circuitdiscovery as cd, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "number.csv"
    >>> _ = path.write_text("text,token,label\\nThe keys are old.,keys,many\\nThe key is old.,key,one\\n")
    >>> print(cd.features.labels_from_csv(path, cd.load_model("toy")))
    number: 2 labels, 1 many, 1 one
    """
    reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
    try:
        table = list(reader)
    except csv.Error as error:
        raise CircuitDiscoveryError(f"{path}, line {reader.line_num}: not CSV: {error}") from None
    for column in COLUMNS:
        if column not in (reader.fieldnames or ()):
            raise CircuitDiscoveryError(f"{path}: the column {column!r} is missing")
    if not table:
        raise CircuitDiscoveryError(f"{path} has no row")
    encoder, found = Encoder(model.tokenizer), list[tuple[str, str, int, int]]()
    numbers = {text: i for i, text in enumerate(dict.fromkeys(each["text"] or "" for each in table))}
    prompts = prompts_of(model, list(numbers), str(path))
    for number, row in enumerate(table, 1):
        where, text, token = f"{path}, row {number}", row["text"] or "", (row["token"] or "").strip()
        if not (row["label"] or "").strip():
            raise CircuitDiscoveryError(f"{where}: there is no label")
        at = numbers[text]
        found.append((row["label"].strip(), token, _place(encoder, text, prompts.rows[at], token, where), at))
    values, tokens, places, rows = zip(*found, strict=True)
    words = all(token and not _is_number(token) for token in tokens)
    types = tuple(token.lower() for token in tokens) if words else None
    return Labels(Path(path).stem, values, types, None, prompts.rows, rows, places)


def _is_number(token: str) -> bool:
    return re.fullmatch(r"-?\d{1,9}", token) is not None


def _place(encoder: Encoder, text: str, ids: tuple[int, ...], token: str, where: str) -> int:
    """The number of the token that a cell names."""
    if not token or _is_number(token):
        place = int(token or -1)
        if not -len(ids) <= place < len(ids):
            raise CircuitDiscoveryError(f"{where}: token {place} is outside of the text's {len(ids)} tokens")
        return place % len(ids)
    ends = [each.end() for each in re.finditer(rf"(?<!\w){re.escape(token)}(?!\w)", text)]
    if len(ends) != 1:
        often = f"{len(ends)} times" if ends else "not"
        raise CircuitDiscoveryError(
            f"{where}: {shown(token)} stands {often} in the text; name a word that stands there once, or a "
            "token's number"
        )
    place = encoder.index(text, ends[0], ids)
    if place is None:
        raise CircuitDiscoveryError(f"{where}: no token ends where {shown(token)} does; give its number")
    return place
