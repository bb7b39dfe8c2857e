"""Inputs that somebody broke, seeded: what reads them gives a result or one clear line, runs
nothing of theirs and leaves nothing half.

A kind of input is a function of (random, folder) that writes one broken input
into the folder and gives what reads it.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import circuitdiscovery as cd
from circuitdiscovery.cli.main import main
from circuitdiscovery.files.disk import data_folder

Read = Callable[[], object]
Kind = Callable[[Random, Path], Read]
SECONDS = 60  # that one input may take, on a busy machine
RAN = "mutation_ran"  # the file that code of an input would leave

LITERALS = [
    *(
        "null",
        "true",
        "false",
        "-1",
        "0",
        "1",
        "-0.0",
        "1e308",
        "-1e308",
        "1e400",
        "NaN",
        "Infinity",
        "0.5",
        "9" * 400,
        "9" * 5000,
    ),
    *(
        '""',
        '"x"',
        '"0.01"',
        '"\\u0000"',
        '"\\u001b[31m"',
        '"\\ud800"',
        '"' + "a" * 5000 + '"',
        "[]",
        "[1]",
        "{}",
        '{"a": 1}',
    ),
    *('"../../etc/passwd"', '"os:system"', "[" * 100 + "]" * 100, "2", "64", "1000000000000"),
]
BYTES = [
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\r",
    b"\n",
    b"\t",
    b'"',
    b"'",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"=",
    b"\x1b[2J",
    "\u2028\u202e".encode(),
]


# ------------------------------------------------------------------- how to break


def broken_bytes(random: Random, data: bytes) -> bytes:
    """Some bytes changed, lost, doubled or put in."""
    found = bytearray(data)
    for _ in range(random.randint(1, 3)):
        at, length = random.randrange(len(found) + 1), random.choice((1, 1, 4, 40, 400))
        how = random.randrange(5)
        if how == 0:
            del found[at : at + length]
        elif how == 1:
            found[at:at] = random.choice(BYTES)
        elif how == 2:
            found[at:at] = found[at : at + length]
        elif how == 3 and found:
            found[at % len(found)] ^= 1 << random.randrange(8)
        else:
            del found[at:]
    return bytes(found)


def broken_json(random: Random, text: str) -> str:
    """One place of a JSON value lost, doubled, renamed or exchanged for a literal of another kind."""
    value = json.loads(text)
    for _ in range(random.randint(1, 2)):
        place = random.choice(list(_places(value)) or [(value, None)])
        holder, key = place
        if key is None:
            return random.choice(LITERALS)
        how = random.randrange(6)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[random.choice(("x", f"{key}x", "", "\0", "auto_map"))] = holder.pop(key)
        elif how == 2 and isinstance(holder, list):
            holder.insert(key, holder[key])
        else:
            holder[key] = f"@@{random.randrange(len(LITERALS))}@@"
    text = json.dumps(value)
    for i, literal in enumerate(LITERALS):
        text = text.replace(f'"@@{i}@@"', literal)
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in list(children)[:200]:
        yield value, key
        yield from _places(child)


def broken_text(random: Random, text: str) -> bytes:
    """Lines lost, doubled or exchanged, words exchanged for literals, or bytes broken."""
    if random.random() < 0.4:
        return broken_bytes(random, text.encode())
    lines = text.splitlines(keepends=True)
    at = random.randrange(len(lines))
    how = random.randrange(4)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.insert(at, lines[at])
    elif how == 2:
        other = random.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        words = lines[at].split(" ")
        words[random.randrange(len(words))] = random.choice(LITERALS)
        lines[at] = " ".join(words)
    return "".join(lines).encode(errors="surrogatepass")


def broken_file(random: Random, path: Path) -> None:
    """A file, broken in a way of its kind."""
    data = path.read_bytes()
    if path.suffix == ".json" and random.random() < 0.75:
        path.write_text(broken_json(random, data.decode()), "utf-8", errors="surrogatepass")
    elif path.suffix in (".toml", ".csv", ".jsonl"):
        path.write_bytes(broken_text(random, data.decode()))
    elif path.suffix in (".safetensors", ".state") and random.random() < 0.5:
        path.write_bytes(_broken_header(random, data))
    else:
        path.write_bytes(broken_bytes(random, data))


def _broken_header(random: Random, data: bytes) -> bytes:
    """A safetensors file whose header says something else."""
    size = int.from_bytes(data[:8], "little")
    header = broken_json(random, data[8 : 8 + size].decode()).encode(errors="replace")
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


# ------------------------------------------------------------------- what is broken


@dataclass(frozen=True)
class Whole:
    """What is there before anything is broken."""

    model: Any
    task: Any
    run: Path  # a finished run's folder
    state: Path  # of an unfinished search

    @classmethod
    def made(cls, folder: Path) -> Whole:
        """A quick run of toy, and the state of a search that was stopped."""
        run, state = folder / "run", folder / "search.state"
        line = f"discover toy ioi --method eap --edges 30 --examples 2 --measure quick --out {run}"
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
            main(line.split())
        model = cd.load_model("toy")
        task = cd.load_task("ioi", model, examples=2)

        def stop(done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            cd.acdc(model, task, threshold=0.5, state=state, progress=stop)
        return cls(model, task, run, state)

    def kinds(self) -> dict[str, Kind]:
        """Every kind by its name, quick ones first."""
        quick: dict[str, Kind] = {
            "circuit.json": self.circuit,
            "scores": self.scores,
            "MIB's JSON": self.mib,
            "task file": self.task_file,
            "table": self.table,
            "hypothesis": self.hypothesis,
            "command line": self.command_line,
        }
        slow: dict[str, Kind] = {
            "state of a search": self.search_state,
            "run folder": self.run_folder,
            "config": self.config,
            "tokenizer": self.tokenizer,
            "weights": self.weights,
        }
        return quick | slow

    def circuit(self, random: Random, folder: Path) -> Read:
        """circuit.json: read, drawn, written."""
        path = Path(shutil.copy(self.run / "circuit.json", folder))
        broken_file(random, path)

        def read() -> None:
            found = cd.load_circuit(path)
            found.check_model(self.model)
            cd.compare(found, found)
            found.strongest(5)
            repr(found)
            found.save(folder / "again.json")
            if random.random() < 0.05:
                found.draw(folder / "again.svg")

        return read

    def scores(self, random: Random, folder: Path) -> Read:
        """scores.safetensors."""
        path = Path(shutil.copy(self.run / "scores.safetensors", folder))
        broken_file(random, path)

        def read() -> None:
            found = cd.Scores.load(path)
            found.top(5)
            found.by_node()
            found.save(folder / "again.safetensors")
            found.plot(folder / "again.svg")

        return read

    def mib(self, random: Random, folder: Path) -> Read:
        """A circuit in MIB's JSON."""
        path = folder / "mib.json"
        cd.load_circuit(self.run).save(path, format="mib")
        broken_file(random, path)
        return lambda: (cd.load_circuit(path), cd.Scores.load(path))

    def task_file(self, random: Random, folder: Path) -> Read:
        """A task's .toml."""
        source = random.choice(sorted(data_folder("tasks").glob("*.toml")))
        path = Path(shutil.copy(source, folder / f"{source.stem}.toml"))
        broken_file(random, path)
        return lambda: cd.load_task(path, self.model, examples=2)

    def table(self, random: Random, folder: Path) -> Read:
        """A .csv or .jsonl of prompts."""
        suffix = random.choice((".csv", ".jsonl"))
        path, rows = folder / f"mine{suffix}", list(self.task.examples) + list(self.task.held_out.examples)
        texts = [each.text for each in rows]
        names = [(each.variables["IO"], each.variables["S"]) for each in rows]
        if suffix == ".csv":
            lines = [f'"{text}","{text}"," {io}"," {s}"' for text, (io, s) in zip(texts, names, strict=True)]
            path.write_text("\n".join(["clean,corrupted,correct,incorrect", *lines]) + "\n", "utf-8")
        else:
            keys = ("clean", "corrupted", "correct", "incorrect")
            values = [(text, text, f" {io}", f" {s}") for text, (io, s) in zip(texts, names, strict=True)]
            path.write_text(
                "".join(json.dumps(dict(zip(keys, each, strict=True))) + "\n" for each in values), "utf-8"
            )
        broken_file(random, path)
        return lambda: cd.load_task(path, self.model)

    def hypothesis(self, random: Random, folder: Path) -> Read:
        """A hypothesis' .toml."""
        source = random.choice(sorted((data_folder("graphs") / "toy").glob("*.toml")))
        path = Path(shutil.copy(source, folder))
        broken_file(random, path)
        return lambda: cd.load_hypothesis(path).edges_of(self.model.graph)

    def command_line(self, random: Random, folder: Path) -> Read:
        """Words of the command line, some of them wrong."""
        run = Path(shutil.copytree(self.run, folder / "run"))
        odd = [
            "",
            "x",
            "-1",
            "0",
            "1e400",
            "9" * 400,
            "\x1b[31m",
            "a\nb",
            "a" * 5000,
            "os:system",
            "./nowhere",
            "toy",
            "ioi",
            "IOI",
            "~",
        ]
        odd += [
            "--",
            "-h",
            "run",
            "run/circuit.json",
            "run/run.json",
            "gpt2/ioi",
            "none.csv",
            "../x",
            "NaN",
            "\udcff",
            "kl",
            "patch",
        ]
        command = random.choice(
            (
                "discover",
                "evaluate",
                "compare",
                "draw",
                "report",
                "benchmark",
                "tasks",
                "explain",
                "trace",
                "scrub",
                "x",
            )
        )
        options = [
            "--method",
            "--ablation",
            "--metric",
            "--threshold",
            "--edges",
            "--examples",
            "--seed",
            "--batch-size",
            "--device",
        ]
        options += [
            "--dtype",
            "--measure",
            "--out",
            "--model",
            "--task",
            "--counterfactual",
            "--json",
            "--resume",
            "-o",
            "--steps",
            "--quiet",
        ]
        words = [command, *(random.choice(odd) for _ in range(random.choice((0, 1, 2, 2, 3))))]
        for _ in range(random.randint(0, 3)):
            words += [random.choice(options), random.choice(odd)]
        if command in ("discover", "trace", "scrub", "evaluate", "explain"):
            words += ["--examples", "2"]
        if command == "benchmark":
            words += ["--seed", "x"]  # what could be a run of minutes is stopped where options are read

        def read() -> None:
            before = os.getcwd(), list(sys.argv)
            os.chdir(folder)
            sys.argv = ["circuitdiscovery", *words]
            try:
                told = io.StringIO()
                with redirect_stderr(told), exited() as status:
                    main(words)
                said = told.getvalue()
                if status and status[0] == 2:
                    line = said.splitlines()[-1] if said.strip() else ""
                    if (
                        "CIRCUITDISCOVERY_DEBUG" in line
                        or "Traceback" in said
                        or not line.startswith("circuitdiscovery: ")
                    ):
                        raise AssertionError(f"{words}: {said[-300:]}")
                    raise cd.CircuitDiscoveryError(line)
                if status and status[0] not in (0, 2):
                    raise AssertionError(f"{words}: status {status[0]}: {said[-300:]}")
            finally:
                os.chdir(before[0])
                sys.argv = before[1]
                shutil.rmtree(run, ignore_errors=True)

        return read

    def search_state(self, random: Random, folder: Path) -> Read:
        """The state of a search that goes on."""
        path = Path(shutil.copy(self.state, folder / "search.state"))
        broken_file(random, path)
        return lambda: cd.acdc(self.model, self.task, threshold=0.5, state=path)

    def run_folder(self, random: Random, folder: Path) -> Read:
        """A finished run's folder of which one file is broken or gone: its page, and its circuit measured."""
        run = Path(shutil.copytree(self.run, folder / "run"))
        path = random.choice(
            [each for each in sorted(run.iterdir()) if each.suffix in (".json", ".safetensors")]
        )
        if random.random() < 0.15:
            path.unlink()
        else:
            broken_file(random, path)

        if random.random() < 0.7:
            return lambda: cd.report(run, folder / "again.html")
        return lambda: cd.compare(run, run, scores=run)

    def _model(self, random: Random, folder: Path, name: str) -> Read:
        copy = Path(shutil.copytree(data_folder("models") / "toy", folder / "model"))
        (copy / "evil.py").write_text(f"open({str(folder / RAN)!r}, 'w').close()\n")
        if name == "config.json" and random.random() < 0.1:
            config = json.loads((copy / name).read_text())
            config |= {
                "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
                "model_type": "evil",
            }
            (copy / name).write_text(json.dumps(config))
        broken_file(random, copy / name)
        return lambda: cd.load_task("ioi", cd.load_model(copy), examples=2)

    def config(self, random: Random, folder: Path) -> Read:
        """A model's config.json."""
        return self._model(random, folder, "config.json")

    def tokenizer(self, random: Random, folder: Path) -> Read:
        """A model's tokenizer."""
        toy = data_folder("models") / "toy"
        return self._model(
            random, folder, random.choice([each.name for each in sorted(toy.glob("token*.json"))])
        )

    def weights(self, random: Random, folder: Path) -> Read:
        """A model's weights."""
        return self._model(random, folder, "model.safetensors")


@contextmanager
def exited() -> Iterator[list[int]]:
    """The status that a block exits with."""
    status: list[int] = []
    try:
        yield status
    except SystemExit as ended:
        status.append(int(ended.code or 0))


# ------------------------------------------------------------------- what comes of it


def outcome(kind: Kind, seed: str, folder: Path) -> str:
    """`result`, `refused`, or what was wrong: of one broken input, made and read in an empty folder."""
    folder.mkdir(parents=True)
    out = io.StringIO()
    try:
        read = kind(Random(seed), folder)
        given = {path for path in folder.rglob("*") if path.is_file()}
        told = _told(read, out)
        left = [path.name for path in folder.rglob("*") if path.is_file() and path not in given]
        if (folder / RAN).exists() or "evil" in sys.modules:
            return "ran code of the input"
        if half := [
            name for name in left if name.endswith(".tmp") or (told == "refused" and name.startswith("again"))
        ]:
            return f"left {half[0]}"
        return told
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _told(read: Read, out: io.StringIO) -> str:
    def late(*_: object) -> None:
        raise TimeoutError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        with redirect_stdout(out):
            read()
        return "result"
    except cd.CircuitDiscoveryError as error:
        text = str(error)
        return "refused" if text.isprintable() and text else f"not one line: {text[:200]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
