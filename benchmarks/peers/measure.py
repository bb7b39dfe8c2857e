"""What the drivers of peers share: their arguments, the prompts, times, peak
memory in a child process, and the JSON.

It imports nothing of the project: a driver runs in its peer's own environment. A row is a name and a function
to time; the memory of a row is measured in a child process that loads the peer and runs this row once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch
from torch import Tensor

Work = Callable[[], Any]


@dataclass(frozen=True)
class Prompts:
    """prompts.json: N prompts of T tokens, their answers, and two circuits as lists of edge names."""

    clean: Tensor  # [N, T]
    corrupted: Tensor  # [N, T]
    correct: Tensor  # [N]
    incorrect: Tensor  # [N]
    circuits: Mapping[str, list[str]]  # "best" and "half"

    @classmethod
    def read(cls, folder: Path, count: int | None = None) -> Prompts:
        """The first `count` prompts of the folder, by default all of them."""
        content = json.loads((folder / "prompts.json").read_text())
        tensors = (
            torch.tensor(content[name])[:count] for name in ("clean", "corrupted", "correct", "incorrect")
        )
        return cls(*tensors, circuits={"best": content["edges"], "half": content["half"]})

    def logit_diff(self, logits: Tensor) -> Tensor:
        """[N, vocabulary] at the last position -> the mean logit of the correct
        answers minus that of the incorrect ones.
        """
        rows = torch.arange(len(logits))
        return (logits[rows, self.correct] - logits[rows, self.incorrect]).mean()


def hugging_face(folder: Path) -> Any:
    """The folder's model, as Hugging Face runs it."""
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(folder).eval()


def refuse_if_different(peer: Tensor, hugging_face: Tensor) -> None:
    """Stop unless the peer's logits are Hugging Face's to 1e-4 of the
    largest (of 1 where that is smaller)."""
    error, largest = float((peer - hugging_face).abs().max()), float(hugging_face.abs().max())
    print(f"logits differ from Hugging Face's by {error:.2g}, the largest is {largest:.2g}", file=sys.stderr)
    if not error <= 1e-4 * max(1.0, largest):
        raise SystemExit("the peer does not compute this model: nothing is measured")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments of every driver."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", type=Path, metavar="FOLDER")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--repetitions", type=int, default=3)
    made.add_argument("--memory", metavar="ROW", help=argparse.SUPPRESS)
    return made


def times(works: Mapping[str, Work], repetitions: int) -> dict[str, list[float]]:
    """The seconds of each function, all of them called in turn so that a
    slow minute of the machine meets every one.
    """
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            spent[name].append(time.perf_counter() - start)
            print(f"{name}: {spent[name][-1]:.2f} s", file=sys.stderr)
    return spent


def peak_gigabytes(work: Work) -> float:
    """GB that the process's resident set rises above where it is now, at its highest."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
    before = _kilobytes("VmRSS")
    work()
    return max(0, _kilobytes("VmHWM") - before) / 2**20


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_in_child(row: str) -> float:
    """`peak_gigabytes` of one row, measured by this same driver with
    the same arguments in a process of its own.
    """
    print(f"memory of {row}", file=sys.stderr)
    command = [sys.executable, *sys.argv, "--memory", row]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def main(arguments: argparse.Namespace, measure: Callable[[argparse.Namespace], Any]) -> None:
    """Print what `measure` returns as JSON on stdout; whatever it and its libraries print goes to stderr."""
    torch.set_num_threads(arguments.threads)
    with contextlib.redirect_stdout(sys.stderr):
        result = measure(arguments)
    print(json.dumps(result))


def report(
    peer: str,
    arguments: argparse.Namespace,
    seconds: float,
    rows: Mapping[str, Any],
    packages: Mapping[str, str],
    **more: Any,
) -> dict[str, Any]:
    """The JSON of a whole run; `packages` gives the key of each package's version."""
    versions = {key: version(package) for key, package in packages.items()}
    head = {"peer": peer, **versions, "torch": torch.__version__, "threads": arguments.threads}
    return head | more | {"F": seconds, "rows": dict(rows)}
