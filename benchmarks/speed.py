"""What the engine costs, in multiples of F: one plain Hugging Face
forward of the same batch in the same process.

    python benchmarks/speed.py [--peer NAME=PYTHON ...] [--skip acdc ...]

A random model of GPT-2 small's shape (12 layers, 12 heads, d_model 768, 32,491 edges), 16 prompts of 16
tokens. A row is the median of interleaved repetitions; memory is the peak of the resident set above the
loaded model, each row in a child process. ACDC runs whole. Exact patching, the naive search (one forward of a
circuit per edge, from the embedding) and a peer's ACDC are timed on edges stratified by the receiver's layer
and multiplied up: "estimated". A peer runs in its own environment: `--peer auto_circuit=env/bin/python` calls
`benchmarks/peers/auto_circuit.py` there (see `benchmarks/peers/README.md`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workload import N_BEST, Size, Workload, machine, peak_in_child, print_peak, seconds

import circuitdiscovery as cd
from circuitdiscovery.engine.metrics import bind
from circuitdiscovery.engine.setup import Setup
from circuitdiscovery.search.alternatives import cases, mean_metric, most_alternatives, without_each

NAMES = {
    "eap": "EAP, every edge",
    "eap_ig": "EAP-IG, 5 steps, every edge",
    "half": "a circuit's logits, replacements given: random half of the edges",
    "best": f"a circuit's logits, replacements given: best {N_BEST:,} edges",
}
SKIPPABLE = ("acdc", "exact", "naive", "large", "transformer_lens", "as_installed")
LARGE = 64  # prompts of the chunked row

Row = tuple[str, str, str]  # what, time, memory


def exact_per_edge(work: Workload, decisions: int) -> float:
    """Seconds that every edge takes alone, estimated: per layer and letter from as
    many edges of one receiver as run together.
    """
    graph, task = work.model.graph, work.task
    metric = bind("kl_divergence", work.model, task)
    with torch.no_grad():
        found, _ = cases(Setup.of(work.model, task, graph, ablation="resample"))
        kinds = [(layer, letter) for layer in range(graph.n_layers) for letter in "qkvm"]
        total = 0.0
        for layer, letter in [*kinds, (graph.n_layers, "logits")]:
            columns = (
                graph.columns(layer, letter)
                if layer < graph.n_layers
                else np.array([len(graph.receivers) - 1])
            )
            receiver = int(columns[len(columns) // 2])
            size = most_alternatives(found, graph.allowed, receiver)
            sources = np.flatnonzero(graph.allowed[:, receiver])
            some = sources[: max(size, -(-decisions // len(kinds)))]
            for repetition in range(2):  # the first warms up
                start = time.perf_counter()
                for chunk in np.array_split(some, -(-len(some) // size)):
                    alternatives = without_each(graph.allowed[:, receiver], chunk)
                    logits = [
                        case.patched.branch(graph.allowed, case.state, receiver, alternatives)
                        for case in found
                    ]
                    mean_metric(task, found, metric, logits)
                if repetition:
                    total += (time.perf_counter() - start) / len(some) * len(columns) * len(sources)
    return total


def naive_per_edge(work: Workload, decisions: int) -> float:
    """Seconds that a search takes which runs the whole circuit for each edge,
    estimated from edges of every layer's receivers.
    """
    graph, rng = work.model.graph, np.random.default_rng(0)
    metric = bind("kl_divergence", work.model, work.task)
    ((batch, patched_run),) = Setup.of(work.model, work.task, graph, ablation="resample").patched_runs()
    total = 0.0
    with torch.no_grad():
        patched_run.logits(graph.allowed)
        for layer in range(graph.n_layers + 1):
            edges = [(s, r) for s, r in np.argwhere(graph.allowed) if graph.receiver_layers[r] == layer]
            some = rng.permutation(edges)[: -(-decisions // (graph.n_layers + 1))]
            start = time.perf_counter()
            for source, receiver in some:
                mask = graph.allowed.copy()
                mask[source, receiver] = False
                metric(patched_run.logits(mask), batch).mean()
            total += (time.perf_counter() - start) / len(some) * len(edges)
    return total


def peer_folder(work: Workload, folder: Path) -> None:
    """The weights, the prompts and the two circuits, for the drivers in `peers`."""
    work.hugging_face.save_pretrained(folder)
    tokens = {name: getattr(work, name).tolist() for name in ("clean", "corrupted", "correct", "incorrect")}
    circuits = {
        "edges": work.model.graph.names(work.best().mask),
        "half": work.model.graph.names(work.half().mask),
    }
    (folder / "prompts.json").write_text(json.dumps({**tokens, **circuits, "metric": "logit_diff"}))


def peer_rows(
    folder: Path, driver: str, python: str, arguments: argparse.Namespace, *more: str
) -> Iterator[Row]:
    """What a driver measured, in its own F."""
    script = Path(__file__).parent / "peers" / f"{driver}.py"
    command = [
        python,
        str(script),
        str(folder),
        "--threads",
        str(arguments.threads),
        "--repetitions",
        "2",
        *more,
    ]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    name = f"{found['peer']} {found['version']}{', repaired' if found.get('repaired') else ''}"
    for row, measured in found["rows"].items():
        what = NAMES.get(
            row, {"acdc": "ACDC", "attribution_patch": "attribution_patch, two prompts"}.get(row, row)
        )
        yield (
            f"{name}: {what}",
            _cost(measured["seconds"], found["F"], measured.get("estimated", False)),
            _gigabytes(measured),
        )


def _gigabytes(measured: dict[str, Any]) -> str:
    return f"{measured['gigabytes']:.2f} GB" if "gigabytes" in measured else ""


def _cost(taken: float, forward: float, estimated: bool = False) -> str:
    whole = (
        f"{taken / forward:,.0f} F, {taken:,.0f} s" if taken > 100 * forward else f"{taken / forward:.2f} F"
    )
    return f"{whole} (estimated)" if estimated else whole


def rows(arguments: argparse.Namespace) -> Iterator[Row]:
    """The table, row by row as they are measured."""
    size = Size(arguments.prompts, arguments.length)
    work = Workload(size)
    short = seconds(work.rows(["F", *NAMES]), arguments.repetitions)
    forward = short["F"]
    yield "F, one Hugging Face forward", f"1 F, {forward:.2f} s", ""
    for row, name in NAMES.items():
        yield name, _cost(short[row], forward), f"{peak_in_child(__file__, row, size):.2f} GB"
    if "large" not in arguments.skip:
        large = replace(size, prompts=LARGE)
        taken = seconds(Workload(large).rows(["F", "eap"]), 3)
        yield (
            f"EAP, every edge, {LARGE} prompts",
            _cost(taken["eap"], taken["F"]),
            f"{peak_in_child(__file__, 'eap', large):.2f} GB",
        )
    if "exact" not in arguments.skip:
        yield (
            "exact patching of every edge",
            _cost(exact_per_edge(work, arguments.decisions), _f(work), estimated=True),
            "",
        )
    if "naive" not in arguments.skip:
        yield (
            "naive search, a whole circuit per edge",
            _cost(naive_per_edge(work, arguments.decisions), _f(work), estimated=True),
            "",
        )
    if "acdc" not in arguments.skip:
        before, start = _f(work), time.perf_counter()
        found = cd.acdc(work.model, work.task, threshold=arguments.threshold, progress=_progress)
        taken = time.perf_counter() - start
        after = _f(work)
        yield (
            f"ACDC, whole, to {len(found):,} edges (threshold {arguments.threshold:g})",
            _cost(taken, (before + after) / 2),
            "",
        )
        start = time.perf_counter()
        grouped = cd.acdc(
            work.model, work.task, threshold=arguments.threshold, group_testing=True, progress=_progress
        )
        taken = time.perf_counter() - start
        what = (
            f"the same by group testing, to {len(grouped):,} edges, {len(grouped & found):,} of them "
            "in common"
        )
        yield what, _cost(taken, (after + _f(work)) / 2), ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.peer or "transformer_lens" not in arguments.skip:
            peer_folder(work, folder)
        del work
        if "transformer_lens" not in arguments.skip:
            yield from peer_rows(folder, "transformer_lens_attribution", sys.executable, arguments)
        for peer in arguments.peer:
            driver, _, python = peer.partition("=")
            for repair in [["--repaired"]] if "as_installed" in arguments.skip else [[], ["--repaired"]]:
                yield from peer_rows(
                    folder, driver, python, arguments, "--decisions", str(arguments.decisions), *repair
                )
    yield "ACDC, 200 prompts, on an H200", "not measured", ""
    yield "EAP, Llama-3.1-8B's shape in bfloat16, on an H200", "not measured", ""


def _f(work: Workload) -> float:
    return seconds({"F": work.forward}, 5)["F"]


def _progress(done: int, total: int) -> None:
    print(
        f"\racdc {done:,} of {total:,} edges", end="\n" if done == total else "", file=sys.stderr, flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threshold", type=float, default=2.5e-5, help="of ACDC, in nats")
    parser.add_argument("--decisions", type=int, default=208, help="edges timed where a row is estimated")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PYTHON",
        help="a driver in peers/ and its environment",
    )
    parser.add_argument("--skip", nargs="*", choices=SKIPPABLE, default=[])
    parser.add_argument("--memory", choices=tuple(NAMES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print_peak(arguments.memory, Size(arguments.prompts, arguments.length))
        return
    print(f"{datetime.date.today()}, {machine()}, {arguments.prompts} prompts of {arguments.length} tokens\n")
    print("| | time | peak above the loaded model |\n| --- | --- | --- |")
    for row in rows(arguments):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
