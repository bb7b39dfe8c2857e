"""`discover`: search, measure, explain, draw."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from circuitdiscovery.cli import defaults
from circuitdiscovery.cli.arguments import (
    ABLATION,
    COUNT,
    DEVICE,
    DIRECTION,
    DTYPE,
    METRIC,
    SEED,
    SPLIT,
    THRESHOLD,
    as_json,
    check_rows,
    in_folder,
    memory,
    methods,
    methods_own,
    on_task,
    one_of,
    skip_bad_rows,
    valid_counterfactual,
)
from circuitdiscovery.cli.commands.group import PROGRAM, cli
from circuitdiscovery.cli.files import show_json, show_report
from circuitdiscovery.registry import DEFAULT_THRESHOLD, FEW, KL
from circuitdiscovery.reporting.options import Options


@cli.command(short_help="Find, measure and draw the circuit of MODEL behind TASK.")
@on_task
@click.option(
    "--method",
    type=one_of("method"),
    help=f"How to search.  [default: acdc; matryoshka for a graph of more than {defaults.LARGE:,} edges]",
)
@click.option(
    "--ablation", type=ABLATION, default="resample", show_default=True, help="What a removed edge carries."
)
@click.option(
    "--metric",
    type=METRIC,
    help=(
        f"What is measured.  [default: kl-divergence to search by {methods(lambda each: each.metric == KL)}, "
        "else the task's]"
    ),
)
@click.option(
    "--direction",
    type=DIRECTION,
    default="noising",
    show_default=True,
    help="Damage the clean run, or restore the corrupted one.",
)
@click.option(
    "--threshold",
    type=THRESHOLD,
    help=(
        f"{methods(lambda each: each.sizes == 'threshold')}: no edge of damage below T  "
        f"[default: {DEFAULT_THRESHOLD}].  {methods(lambda each: each.sizes == 'any')}: keep edges of "
        "|score| T or more."
    ),
)
@click.option(
    "--edges",
    type=COUNT,
    help=(
        f"Circuit size (not for {methods(lambda each: each.sizes == 'threshold')}): at most N edges, all on "
        "whole paths from input to logits, of large total |score|.  [default: 10% of all, but "
        f"no more than {FEW}, or 1% where that is more]"
    ),
)
@click.option(
    "--counterfactual",
    metavar="NAME",
    help="What the corrupted prompts ask, see `tasks`.  [default: the task's first choice]",
)
@click.option(
    "--no-split-qkv",
    is_flag=True,
    help="Use one edge into a head instead of separate edges into its query, key and value.",
)
@click.option(
    "--split",
    type=SPLIT,
    multiple=True,
    help=(
        "Make the parts of this node nodes of their own, and what is left m2/rest, such as m2=neurons or "
        "input=positions (where the task's words stand); repeatable."
    ),
)
@click.option("--keep", type=COUNT, help="Of MLPs split into neurons the N that matter most.  [default: all]")
@click.option(
    "--neurons", type=COUNT, help="Split every MLP into the N neurons that matter most and the rest."
)
@click.option(
    "--examples",
    type=COUNT,
    help="Prompt pairs to search on; as many are held out to evaluate.  [default: 64, or half of a table]",
)
@methods_own
@skip_bad_rows
@click.option("--batch-size", type=COUNT, help="Examples at a time.  [default: what memory allows]")
@memory
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="For the examples and everything else that is random.",
)
@click.option("--device", type=DEVICE, help="[default: a GPU if there is one]")
@click.option("--dtype", type=DTYPE, default="float32", show_default=True)
@click.option(
    "--measure",
    type=one_of("measure"),
    help=(
        "How much of the circuit is measured and explained.  [default: full for small models and "
        "circuits, else quick]"
    ),
)
@in_folder(
    "MODEL-TASK-METHOD",
    "Continue the run in --out, or the latest one of this model, task and method; with --measure, measure "
    "more of it.",
)
@as_json
def discover(no_split_qkv: bool, out: Path | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Find, measure and draw the circuit of MODEL behind TASK.

    MODEL is a bundled or hub name, a folder, or a .gguf file; TASK is a name, or a .toml, .csv or
    .jsonl file, or the .json of a saved task.
    """
    from circuitdiscovery.cli import run
    from circuitdiscovery.cli.folders import open_folder

    given["counterfactual"] = valid_counterfactual(given["task"], given["counterfactual"])
    check_rows(given["task"], given["skip_bad"])
    if given["method"] is None:  # a threshold says that it is acdc
        given["method"] = (
            "acdc" if given["threshold"] is not None else defaults.default_method(given["model"])
        )
    given["split"] = " ".join(given["split"]) or None
    options = Options.of({**given, "split_qkv": not no_split_qkv})
    options.check()
    with open_folder(options.name, out=out, resume=resume) as folder:
        record = run.discover(options, folder, [PROGRAM, *sys.argv[1:]], fresh=not resume)
    if as_json:
        show_json(record["summary"])
    else:
        show_report(record["report"], record["summary"], options)
