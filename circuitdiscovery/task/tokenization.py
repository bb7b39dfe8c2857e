"""From text to tokens: a row of prompts and answers becomes an Example, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.task.example import Example, resolve_position
from circuitdiscovery.task.table import Row, Table

_ENCODING = Lock()  # of threads with one tokenizer, whose settings are changed for a moment


class HasTokenizer(Protocol):
    """A model, as far as text needs one."""

    @property
    def tokenizer(self) -> Any: ...


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens; their ids where there is no tokenizer, or where they have no text.

    >>> text_of(None, [3, 5])
    '3 5'
    """
    if tokenizer is None:
        return " ".join(map(str, ids))
    return str(tokenizer.decode(list(ids))) or "".join(map(Encoder(tokenizer).token, ids))


@dataclass(frozen=True)
class Encoder:
    """A tokenizer's own call, with its BOS as the tokenizer has it, or put in front
    (`bos=True`) or taken away (`bos=False`). `n_positions` are what the model can read; None: any number.
    """

    tokenizer: Any
    bos: bool | None = None
    n_positions: int | None = None

    @cached_property
    def _encoded(self) -> dict[str, tuple[int, ...]]:
        """Of a text; a row's prompts are asked for several times."""
        return {}

    @cached_property
    def _backend(self) -> Any:
        """What the tokenizer's own call ends in, at a third of the time, where that is transformers'.

        It is the tokenizer's, and others call that: a copy of a large vocabulary takes seconds.
        """
        from transformers import PreTrainedTokenizerFast

        theirs: Any = PreTrainedTokenizerFast
        if any(
            getattr(type(self.tokenizer), name, None) is not getattr(theirs, name)
            for name in ("__call__", "_encode_plus")
        ):
            return None
        return self.tokenizer.backend_tokenizer

    @cached_property
    def _bos(self) -> int | None:
        """Which transformers looks for anew each time it is asked."""
        return self.tokenizer.bos_token_id

    @cached_property
    def _unknown(self) -> int | None:
        return self.tokenizer.unk_token_id

    def _encode(self, text: str) -> Sequence[int]:
        """By the tokenizer's own call, or what it ends in; whole, whatever the last call asked for."""
        backend = self._backend
        if backend is None:
            return self.tokenizer(text).input_ids
        with _ENCODING:
            truncation, padding = backend.truncation, backend.padding
            backend.no_truncation()
            backend.no_padding()
            try:
                return backend.encode(text).ids
            finally:
                if truncation is not None:
                    backend.enable_truncation(**truncation)
                if padding is not None:
                    backend.enable_padding(**padding)

    def __getstate__(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "bos": self.bos, "n_positions": self.n_positions}

    def ids(self, text: str) -> tuple[int, ...]:
        """The tokens of a text, unchecked."""
        ids = self._encoded.get(text)
        if ids is None:
            ids = self._encoded[text] = tuple(self._encode(text))
        token = self._bos
        if self.bos is True and ids[:1] != (token,):
            if token is None:
                raise CircuitDiscoveryError("bos = true, but the tokenizer has no BOS token")
            return (token, *ids)
        return ids[1:] if self.bos is False and token is not None and ids[:1] == (token,) else ids

    def ending(self) -> int | None:
        """The special token that the tokenizer puts behind every text; None where it puts none."""
        a, b = (list(self._encode(text))[-1:] for text in (" a", " b"))
        special = {*self.tokenizer.all_special_ids} - {self._unknown}
        return a[0] if a == b and {*a} & special else None

    def show(self, ids: Sequence[int]) -> str:
        """The tokens in words, for errors: their texts with a bar between."""
        return repr("|".join(self.token(token) for token in ids))

    def token(self, token: int) -> str:
        """A token as it stands in a text; a tokenizer's own call would take the space away in front of it.

        Embeddings are often padded: an id that the tokenizer does not know has no text, and is named.
        """
        piece = str(self.tokenizer.convert_ids_to_tokens([token])[0])
        text = str(self.tokenizer.decode([token]))
        if piece[:1] in ("\u0120", "\u2581") and text[:1] != " ":
            text = f" {text}"
        return text or f"<token {token}>"

    def knows(self, text: str, ids: Sequence[int]) -> bool:
        """Whether no token is the unknown one. In some vocabularies it is also BOS,
        so it may stand first or be written out.
        """
        unknown = self._unknown
        if unknown is None or unknown not in ids[ids[:1] == (self._bos,) :]:
            return True
        return self.tokenizer.unk_token in text

    def prompt(self, text: str, where: str) -> tuple[int, ...]:
        """The tokens of a prompt; an unknown one is an error."""
        ids = self.ids(text)
        if not ids:
            raise CircuitDiscoveryError(f"{where}: the tokenizer makes no token of {text!r}")
        if len(ids) > 1 and ids[0] == ids[1] == self.tokenizer.bos_token_id and self.ids("")[:1] == ids[:1]:
            token = self.tokenizer.bos_token
            raise CircuitDiscoveryError(
                f"{where}: begins with {token!r}, which the tokenizer puts in front itself: take it out "
                "of the text"
            )
        if not self.knows(text, ids):
            raise CircuitDiscoveryError(
                f"{where}: the tokenizer does not know a word of {text!r}: {self.show(ids)}"
            )
        return ids

    def answer(self, prompt: str, answer: str, where: str) -> int:
        """The one token by which the tokens of prompt + answer extend those
        of the prompt; anything else is an error.
        """
        short, long = self.ids(prompt), self.ids(prompt + answer)
        known = self.knows(prompt + answer, long)
        if known and long[:-1] == short:
            return long[-1]
        other, how = (
            (answer[1:], "without the space") if answer.startswith(" ") else (f" {answer}", "with a space")
        )
        would = self.ids(prompt + other)
        hint = (
            f"; {other!r}, {how}, would be one"
            if other and would[:-1] == short and self.knows(prompt + other, would)
            else ""
        )
        start = next(
            (i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b),
            min(len(short), len(long)),
        )
        why = "does not continue" if known else "is unknown to the tokenizer: it does not continue"
        if start == len(short):
            told = (
                f"it is {len(long) - start} tokens, {self.show(long[start:])}"
                if len(long) > start
                else "it adds no token"
            )
        else:
            told = f"with it, {self.show(short[start:])} becomes {self.show(long[start:])}"
        raise CircuitDiscoveryError(
            f"{where}: the answer {answer!r} {why} {prompt!r} as one token: {told}{hint}"
        )

    def is_single(self, word: str, before: str | None = " ") -> bool:
        """Whether a word is one token where it follows a space, other characters, or
        (None) a word like itself without a space.
        """
        left, added = {" ": (word, f" {word}"), None: (word, word)}.get(before, (before or "", word))
        short, long = self.ids(left), self.ids(left + added)
        return len(long) == len(short) + 1 and long[:-1] == short and self.knows(left + added, long)

    def is_known(self, word: str) -> bool:
        """Whether a word is made of tokens that are not unknown."""
        return self.knows(word, self.ids(f"{word} {word}"))

    def usable(self, table: Table, skip_bad: bool) -> tuple[list[Example], int]:
        """(the examples of the rows that can be used, how many others there are), an error where there are
        others that are not to be skipped, or nothing else.
        """
        found, bad = list[Example](), list(table.bad)
        for row in table.rows:
            try:
                example = self.example(row)
                if self.n_positions is not None and len(example.clean) > self.n_positions:
                    raise CircuitDiscoveryError(
                        f"{row.where}: clean has {len(example.clean)} tokens, but the model reads at most "
                        f"{self.n_positions}"
                    )
                found.append(example)
            except CircuitDiscoveryError as error:
                bad.append((row.number, str(error)))
        if not (skip_bad and found):
            table.refuse(bad)
        return found, len(bad)

    def example(self, row: Row) -> Example:
        """The row as tokens, checked: prompts of equal length that differ, a position
        inside, answers of one token each that differ.
        """
        clean, corrupted = self.prompt(row.clean, row.where), self.prompt(row.corrupted, row.where)
        if len(clean) != len(corrupted):
            raise CircuitDiscoveryError(
                f"{row.where}: clean has {len(clean)} tokens and corrupted {len(corrupted)}: "
                f"{self.show(clean)} and {self.show(corrupted)}"
            )
        if clean == corrupted:
            raise CircuitDiscoveryError(
                f"{row.where}: the corrupted prompt is the clean one, {shown(row.clean)}: there is nothing "
                "to explain"
            )
        answers = [
            tuple(self._token(row, answer) for answer in side) for side in (row.correct, row.incorrect)
        ]
        both = set(answers[0]) & set(answers[1])
        if both:
            raise CircuitDiscoveryError(
                f"{row.where}: correct and incorrect are the same token {self.show(sorted(both))}"
            )
        correct, incorrect = (tuple(dict.fromkeys(side)) for side in answers)
        position = resolve_position(row.position, len(clean), row.where)
        places = {name: self.index(row.clean, end, clean) for name, end in row.ends.items()}
        named = {name: index for name, index in places.items() if index is not None}
        return Example(
            clean, corrupted, correct, incorrect, position, row.template, row.clean, named, row.variables
        )

    def index(self, text: str, end: int, ids: Sequence[int]) -> int | None:
        """The token of a text's ids that ends at a character; None where
        the tokenizer joins it with what follows.
        """
        before = self.ids(text[:end])
        return len(before) - 1 if before and before == tuple(ids[: len(before)]) else None

    def _token(self, row: Row, answer: str | int) -> int:
        return answer if isinstance(answer, int) else self.answer(row.clean, answer, row.where)


def encoder_of(model: HasTokenizer, name: str, bos: bool | None) -> Encoder:
    """The model's, for the texts of a task of that name; a model without a tokenizer is an error, and one
    whose tokenizer ends every text in a token of its own, which no answer can follow.
    """
    if model.tokenizer is None:
        raise CircuitDiscoveryError(
            f"task {name} is text, but the model has no tokenizer; give tokens with Task.from_tokens"
        )
    found = Encoder(model.tokenizer, bos, getattr(model, "n_positions", None))
    token = found.ending()
    if token is not None:
        raise CircuitDiscoveryError(
            f"task {name}: the tokenizer ends every text in {found.token(token)!r}, so no answer can follow "
            "a prompt; load it with add_eos_token=False"
        )
    return found


def first_foreign(examples: Sequence[Example], tokenizer: Any) -> int | None:
    """The first of some examples whose tokens are another tokenizer's: this one makes others of its text, and
    reads these as another text. None if there is none.
    """
    encoders = [
        Encoder(tokenizer, bos) for bos in (None, True, False) if not (bos and tokenizer.bos_token_id is None)
    ]

    def fits(prompt: Example) -> bool:
        # of random tokens, whose text may be written in others, with or without the BOS
        starts = (0, 1) if prompt.clean[:1] == (tokenizer.bos_token_id,) else (0,)
        same = any(tokenizer.decode(list(prompt.clean[start:])) == prompt.text for start in starts)
        return (
            not prompt.text or same or any(encoder.ids(prompt.text) == prompt.clean for encoder in encoders)
        )

    return next((row for row, example in enumerate(examples) if not fits(example)), None)


def tokenizer_digest(tokenizer: Any) -> str | None:
    """Of what a tokenizer does: its vocabulary, its special tokens, and the rules where it
    can write them; None where there is none.
    """
    if tokenizer is None:
        return None
    try:
        if tokenizer not in _DIGESTS:
            _DIGESTS[tokenizer] = _digest(tokenizer)
        return _DIGESTS[tokenizer]
    except TypeError:  # one that cannot be a key
        return _digest(tokenizer)


_DIGESTS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # a large vocabulary takes a tenth of a second


def _digest(tokenizer: Any) -> str:
    found = sha256(
        repr(
            (tokenizer.bos_token_id, getattr(tokenizer, "eos_token_id", None), tokenizer.unk_token_id)
        ).encode()
    )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        text = backend.to_str()  # begins with how the last call padded and cut, which is of that call
        found.update(text[max(0, text.find('"added_tokens"')) :].encode())
    else:
        found.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    return found.hexdigest()[:16]
