"""The page: what a run folder holds, as one self-contained HTML file.

Everything is inline and a policy in the page itself forbids the network. What stands in the page is the same
for the same files: no time, no path. Every text of a run (prompts, tokens, names) is escaped by the
template's autoescape or by `html.escape`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import charts, numbers
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import write_atomically, write_json
from circuitdiscovery.registry import PANELS
from circuitdiscovery.reporting import sentences
from circuitdiscovery.reporting.folder import (
    CONTENTS,
    EXPLANATION,
    PAGE,
    Run,
    completed,
    finished,
    load,
    read,
)
from circuitdiscovery.reporting.panels.example import facts
from circuitdiscovery.reporting.panels.panel import Panel, shared

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent
Json = Mapping[str, Any]


@guarded
def report(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run folder, and give its path.

    What a folder of an older version lacks is computed, which needs the run's model; where that cannot be
    loaded, the page says so and goes without. Without `path` what was computed is kept in the folder.

    Args:
        run_folder: of a finished `discover`.
        path: an .html file; by default report.html in the folder.

    Returns:
        The path of the page.

    Raises:
        CircuitDiscoveryError: no folder of a finished run; a missing or
            broken file; weights that have changed since.
    """
    folder = Path(run_folder)
    finished(folder)
    target = folder / PAGE if path is None else _target(Path(path))
    known = read(folder)
    run = _completed(known)
    if distributed.rank() == 0:
        if path is None and known.contents is None:
            _keep(run)
        _write(run, target)
    return target


def write_page(folder: Path, path: Path) -> None:
    """Write the page of a folder that holds everything, of a run that
    may not have said yet that it is finished.
    """
    _write(read(folder), path)


def _target(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise CircuitDiscoveryError(f"{path} must end in .html")
    if not path.parent.is_dir():
        raise CircuitDiscoveryError(f"there is no folder {path.parent}")
    return path


def _completed(run: Run) -> Run:
    """The run with what its folder lacks."""
    if run.contents is not None:
        return run
    from circuitdiscovery.reporting.data import contents_of, explanation_of

    scores = run.scores()
    options = replace(run.options, device=None, batch_size=None)  # which were of the machine it was made on
    try:
        model, task = load(options)
    except (CircuitDiscoveryError, OSError) as error:
        return replace(run, missing=sentences.without_paths(str(error), options))
    run.circuit.check_model(model)
    evaluation = None if run.effort == "none" else run.evaluation
    explanation, no_cards = explanation_of(model, task, run.circuit, options, run.effort)
    found = model, task, run.circuit, scores, evaluation, options, run.effort
    return completed(run, explanation, contents_of(*found, no_cards))


def _keep(run: Run) -> None:
    """Write what was computed, also over what is there of another format or circuit."""
    for name, value in ((EXPLANATION, run.explanation), (CONTENTS, run.contents)):
        if value is not None:
            write_json(run.folder / name, value)


def _write(run: Run, path: Path) -> None:
    write_atomically(path, render(run))


# ------------------------------------------------------------------- template


def render(run: Run) -> str:
    """The page as text, the same for the same run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        name: getattr(numbers, name) for name in ("number", "percent", "interval", "token", "plural")
    }
    environment.filters |= {
        "quoted": charts.quoted,
        "share": lambda estimate: numbers.interval(estimate, numbers.percent),
        "ends": numbers.ends,
    }
    style, chart_style, script = (
        path.read_text("utf-8") for path in (HERE / "style.css", charts.STYLE, HERE / "script.js")
    )
    inline = {
        "style": Markup(f"{style}{chart_style}"),
        "script": Markup(script),
        "script_hash": _digest(script),
    }
    common = shared(run)

    def rendered(panel: Panel) -> Markup:
        return Markup(environment.from_string(panel.template).render(**common, **panel.values(run)))

    first, *others = [panel.load() for panel in PANELS.values()]
    parts = {"example": rendered(first), "panels": [rendered(panel) for panel in others]}
    names = {"model": facts(run)[0][1].split(":")[0], "task": _task(run)}
    nav = [entry for panel in (first, *others) for entry in panel.nav]
    return environment.get_template("page.html.j2").render(**inline, **common, **parts, **names, nav=nav)


def _digest(script: str) -> str:
    """What the page's policy allows: this script and no other, whatever a prompt may hold."""
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def _task(run: Run) -> dict[str, Any]:
    """The task in words: as the run kept them, else as its file says now."""
    name = Path(run.options.task).stem
    if run.contents is not None:
        return (
            {"description": None, "source": None, "counterfactual": None, "asks": None}
            | dict(run.contents["task"])
            | {"name": name}
        )
    from circuitdiscovery.task.read import read_task
    from circuitdiscovery.task.taskfile import TaskFile

    try:
        file = read_task(run.options.task)
    except CircuitDiscoveryError:
        file = None
    known = {
        key: getattr(file, key) if isinstance(file, TaskFile) else None
        for key in ("description", "source", "counterfactual")
    }
    chosen = run.options.counterfactual or known["counterfactual"]
    rule = file.counterfactuals.get(chosen) if isinstance(file, TaskFile) and chosen else None
    return known | {"name": name, "counterfactual": chosen, "asks": rule.asks if rule else None}
