"""The page: what a run folder holds, as one self-contained HTML file.

Everything is inline and a policy in the page itself forbids the network. What stands in the page is the same
for the same files: no time, no path. Every text of a run (prompts, tokens, names) is escaped by the
template's autoescape or by `html.escape`.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import charts, numbers
from circuitdiscovery.circuit.checks import check_same_graph
from circuitdiscovery.circuit.scores import Scores
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.files.disk import write_atomically, write_json
from circuitdiscovery.graph.nodes import letter_of, node_of, parsed, split_edge
from circuitdiscovery.registry import ablation_words
from circuitdiscovery.reporting import words
from circuitdiscovery.reporting.drawing import colours, drawing, letters, part_of
from circuitdiscovery.reporting.folder import (
    CONTENTS,
    EXPLANATION,
    PAGE,
    Run,
    completed,
    finished,
    load,
    read,
    roles_of,
)
from circuitdiscovery.task.example import END

if TYPE_CHECKING:
    from markupsafe import Markup

HERE = Path(__file__).parent
BESIDE = 900  # points of width up to which a drawing can be read beside the cards
LOOKS = 0.2  # mean attention from which on a pair of positions is named in a summary
TOLD = 24  # nodes with a role up to which the table of roles says why
Json = Mapping[str, Any]


@guarded
def report(run_folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run folder, and give its path.

    What a folder of an older version lacks is computed, which needs the run's model; where that cannot be
    loaded, the page says so and goes without. Without `path` what was computed is kept in the folder.

    Args:
        run_folder: of a finished `discover`.
        path: an .html file; by default report.html in the folder.

    Raises:
        CircuitDiscoveryError: no folder of a finished run; a missing or
            broken file; weights that have changed since.
    """
    folder = Path(run_folder)
    finished(folder)
    target = folder / PAGE if path is None else _target(Path(path))
    run = _completed(read(folder))
    if distributed.rank() == 0:
        if path is None and run.contents is not None:
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
    from circuitdiscovery.reporting.contents import gather

    scores = run.scores()
    try:
        model, task = load(run.options)
    except (CircuitDiscoveryError, OSError) as error:
        return replace(run, missing=words.without_paths(str(error), run.options))
    run.circuit.check_model(model)
    evaluation = None if run.effort == "none" else run.evaluation
    return completed(run, *gather(model, task, run.circuit, scores, evaluation, run.options, run.effort))


def _keep(run: Run) -> None:
    for name, value in ((EXPLANATION, run.explanation), (CONTENTS, run.contents)):
        if value is not None and not (run.folder / name).exists():
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
    return environment.get_template("page.html.j2").render(**inline, **_context(run, Markup)) + "\n"


def _digest(script: str) -> str:
    """What the page's policy allows: this script and no other, whatever a prompt may hold."""
    return "sha256-" + b64encode(sha256(script.encode()).digest()).decode()


def _context(run: Run, safe: type[Markup]) -> dict[str, Any]:
    circuit, evaluation, contents = run.circuit, run.evaluation, run.contents
    cards = dict(run.explanation["cards"]) if run.explanation else {}
    roles = roles_of(cards)
    nodes = [node for node in circuit.nodes if node not in ("input", "logits")]
    heads = circuit.graph.n_layers * (circuit.graph.n_heads + circuit.graph.has_mlp)
    drawn, shown = part_of(circuit)
    picture = drawing(drawn, roles, list(cards))
    missing = run.missing or (contents["no_cards"] if contents else None)
    return {
        "run": run,
        "facts": _facts(run),
        "command": words.command(run.options),
        "task": _task(run),
        "example": _example(contents),
        "verdict": words.verdict(
            evaluation, len([node for node in nodes if parsed(node).kind != "group"]), heads, contents
        ),
        "measured": run.effort != "none",
        "unmeasured": run.explanation["unmeasured"] if run.explanation else [],
        "metric": words.METRICS.get(evaluation["metric"], evaluation["metric"]),
        "metric_meaning": words.METRIC_MEANING.get(evaluation["metric"]),
        "ablation": words.ABLATIONS.get(evaluation["ablation"], evaluation["ablation"]),
        "drawing": safe(picture),
        "large": int(re.findall(r"--width:(\d+)", picture)[0]) > BESIDE,
        "drawn": len(drawn),
        "shown": shown,
        "node_scores": _node_scores(run, list(cards), safe),
        "scored": circuit.scores is not None,
        "signs": _signs(circuit.score(edge) for edge in drawn.edges),
        "roles": _role_rows(roles, cards),
        "why": sum(map(len, roles.values())) <= TOLD,
        "roleless": [cards[node] for node in cards if cards[node]["role"] is None],
        "cards": _cards(cards, roles, safe),
        "missing": missing,
        "curve": _curve(run, safe),
        "sets": _sets(evaluation),
        "minimality": _minimality(evaluation),
        "prompts": contents["prompts"] if contents else None,
    }


# --------------------------------------------------------------------- header


_USUAL = {"split_qkv": True, "absolute": False}
_EFFORTS = {"none": "not measured", "quick": "quickly (--measure quick)", "full": "in full"}
_TOLD = ("ablation", "metric", "direction")  # of a search's options, in lines of their own


def _facts(run: Run) -> list[tuple[str, str]]:
    circuit, options, evaluation = run.circuit, run.options, run.evaluation
    info, graph = circuit.info, circuit.graph
    model = info.get("model", {})
    shape = f"{numbers.plural(graph.n_layers, 'layer')} of {numbers.plural(graph.n_heads, 'head')}"
    shape += f" in {graph.n_kv_heads} groups" if graph.grouped else ""
    shape += "" if graph.has_mlp else ", no MLPs"
    used = info.get("options", {})
    told = {
        key: value
        for key, value in used.items()
        if key not in _TOLD and value is not None and _USUAL.get(key) is not value
    }
    details = ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in told.items())
    searched = used.get("metric") or evaluation["metric"]
    versions = ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items() if version)
    how = ablation_words(evaluation["ablation"], evaluation.get("mean_over"))
    held_out = (
        f"{evaluation['examples']} more held out to evaluate"
        if evaluation["part"] == "held_out"
        else "none held out"
    )
    return [
        (
            "model",
            f"{model.get('name', Path(options.model).name)}: {shape}, {model.get('dtype', options.dtype)}",
        ),
        ("weights", f"{model['digest'][:12]}" if "digest" in model else "unknown"),
        ("search", f"{options.method.replace('_', '-')}{f' ({details})' if details else ''}, by {searched}"),
        (
            "measured",
            f"{evaluation['metric']}, {how}, {evaluation['direction']}; {_EFFORTS[run.effort]}",
        ),
        *(
            [("scores", words.mass(run.contents["scores"]))]
            if run.contents and run.contents["scores"]
            else []
        ),
        (
            "examples",
            f"{info.get('examples', evaluation['examples'])} prompt pairs, {held_out}; seed {options.seed}",
        ),
        ("versions", versions or "unknown"),
    ]


def _plain(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


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


def _example(contents: Json | None) -> dict[str, Any] | None:
    """The example pair's tokens, each with the name of its position and
    whether the corrupted prompt differs there.
    """
    if contents is None:
        return None
    example = contents["example"]
    places = {index: name for name, index in example["positions"].items()}
    pairs = list(zip(example["clean"], example["corrupted"], strict=True))
    sides = {
        side: [
            {"text": pair[i], "place": places.get(at), "differs": pair[0] != pair[1]}
            for at, pair in enumerate(pairs)
        ]
        for i, side in enumerate(("clean", "corrupted"))
    }
    return sides | {name: example[name] for name in ("correct", "incorrect")}


# ---------------------------------------------------------------------- nodes


def _role_rows(roles: Mapping[str, Sequence[str]], cards: Mapping[str, Json]) -> list[dict[str, Any]]:
    marks, tints = letters(list(roles)), colours(list(roles))
    return [
        {
            "role": role,
            "letter": marks[role],
            "colour": tints[role],
            "meaning": words.meaning(role),
            "cards": [dict(cards[node]) | {"looks": _looks(cards[node])} for node in nodes],
        }
        for role, nodes in roles.items()
    ]


def _cards(
    cards: Mapping[str, Json], roles: Mapping[str, Sequence[str]], safe: type[Markup]
) -> list[dict[str, Any]]:
    marks, tints = letters(list(roles)), colours(list(roles))
    limit = charts.cells_each(sum(len(card["patterns"]) for card in cards.values()))
    each = 3 if limit else 1
    limit = limit or charts.cells_each(sum(bool(card["patterns"]) for card in cards.values()))
    return [
        dict(card)
        | {
            "letter": marks.get(card["role"]),
            "colour": tints.get(card["role"]),
            "looks": _looks(card),
            "table": _table(card),
        }
        | {
            "reads": [_in_edge(*edge) for edge in card["in_edges"]],
            "read_by": [_out_edge(*edge) for edge in card["out_edges"]],
        }
        | {
            "maps": [
                (pattern["text"], safe(charts.heat_map(pattern, limit)))
                for pattern in card["patterns"][: each if limit else 0]
            ]
        }
        for card in cards.values()
    ]


def _in_edge(edge: str, score: float | None) -> tuple[str, str, float | None]:
    """(the source, the letter that reads it, the score) of an edge into a card's node."""
    source, receiver = split_edge(edge)
    return source, f"into {letter_of(receiver)}" if letter_of(receiver) else "", score


def _out_edge(edge: str, score: float | None) -> tuple[str, str, float | None]:
    """(the reader, its letter, the score) of an edge out of a card's node."""
    receiver = split_edge(edge)[1]
    return node_of(receiver), f"by its {letter_of(receiver)}" if letter_of(receiver) else "", score


def _attention(card: Json) -> list[tuple[str, str, float]]:
    """(from, to, mean weight) of the named positions."""
    return [(source, target, weight) for source, target, weight in card["attention"]]


def _looks(card: Json) -> list[tuple[str, str, float]]:
    """Where a head looks most, if anywhere: between which named positions, or
    else to which tokens END looks; two at most.
    """
    pairs = [pair for pair in _attention(card) if pair[0] != pair[1]]
    tokens = [(END, f'"{numbers.token(name)}"', weight) for name, weight in card["attended"] if name != END]
    for found in (pairs, tokens):
        strong = sorted((pair for pair in found if pair[2] >= LOOKS), key=lambda pair: -pair[2])
        if strong:
            return strong[:2]
    return []


def _table(card: Json) -> dict[str, Any] | None:
    """Mean attention from each named position (rows) to each (columns)."""
    known = {(source, target): weight for source, target, weight in _attention(card)}
    if not known:
        return None
    names = list(dict.fromkeys(name for pair in known for name in pair))
    return {
        "columns": names,
        "rows": [(source, [known.get((source, target)) for target in names]) for source in names],
    }


def _signs(scores: Iterable[float | None]) -> dict[str, bool]:
    """Which kinds of edges the drawing has, for its legend."""
    known = list(scores)
    return {
        "helps": any(score is not None and score >= 0 for score in known),
        "hurts": any(score is not None and score < 0 for score in known),
        "unscored": any(score is None for score in known),
    }


def _node_scores(run: Run, cards: Sequence[str], safe: type[Markup]) -> dict[str, Any] | None:
    """The heat map by the run's own scores, else by those of the
    circuit's edges; None where there are none."""
    circuit, own = run.circuit, run.scores()
    if own is not None:
        check_same_graph(circuit, own)
        scores = own
    elif circuit.scores is not None:
        scores = Scores(circuit.graph, np.nan_to_num(circuit.scores))
    else:
        return None
    kept = [circuit.graph.sources[row] for row in np.flatnonzero(np.any(circuit.mask, axis=1))]
    chart = charts.node_scores(circuit.graph, scores.by_node(), kept=kept, cards=cards)
    return {"svg": safe(chart), "own": own is not None}


# ------------------------------------------------------------------ measures


def _curve(run: Run, safe: type[Markup]) -> dict[str, Any]:
    """The chart, what ranked its edges, and the areas; or why there is none."""
    known = run.contents["curve"] if run.contents else None
    if known is None or run.evaluation["normalized"] is None:
        why = run.contents["no_curve"] if run.contents else run.missing
        return {"svg": None, "why": why}
    chart = charts.curve(
        known,
        edges=run.evaluation["edges_pruned"],
        normalized=run.evaluation["normalized"],
        total=run.evaluation["edges_total"],
    )
    former = "area" not in known  # in which ours stood under MIB's names
    ours = (known["cpr"], known["cmd"]) if former else (known["area"], known["distance"])
    mib = {name: None if former else known[name] for name in ("cpr", "cmd")}
    return {"svg": safe(chart), "ranking": known["ranking"], "area": ours[0], "distance": ours[1]} | mib


def _bar(estimate: Mapping[str, float], largest: float) -> dict[str, Any]:
    """An estimate with where its bar and interval end, in percent of the track;
    without an interval, both where the bar does.
    """
    ends = {
        name: estimate["value"] if estimate[name] is None else estimate[name]
        for name in ("value", "low", "high")
    }
    at = {name: round(100 * end / largest, 2) if largest else 0.0 for name, end in ends.items()}
    return {"estimate": estimate, "at": at}


def _end(estimate: Mapping[str, Any]) -> float:
    """Where an estimate's bar and interval end."""
    return estimate["value"] if estimate["high"] is None else estimate["high"]


_KINDS = {
    "empty": "nothing knocked out",
    "random": "a random half of the nodes",
    "greedy": "the nodes that drive them furthest apart",
}


def _sets(evaluation: Json) -> list[dict[str, Any]]:
    """The sets K of completeness, by kind."""
    if evaluation["effort"] == "none":
        return []
    sets = evaluation["completeness"]["sets"]
    largest = max((_end(each["incompleteness"]) for each in sets), default=0.0)
    groups: dict[str, list[dict[str, Any]]] = {}
    for each in sets:
        groups.setdefault(each["kind"], []).append(
            {"nodes": each["nodes"]} | _bar(each["incompleteness"], largest)
        )
    return [{"kind": kind, "said": _KINDS.get(kind, kind), "rows": rows} for kind, rows in groups.items()]


def _minimality(evaluation: Json) -> dict[str, Any]:
    if evaluation["effort"] == "none":
        return {}
    scores, bar = evaluation["minimality"]["scores"], evaluation["minimality"]["bar"]
    largest = max([bar, *map(_end, scores.values())])
    below = set(evaluation["minimality"]["below"])
    rows = [{"node": node, "below": node in below} | _bar(score, largest) for node, score in scores.items()]
    return {
        "others": evaluation["minimality"]["unmeasured"],
        "rows": rows,
        "bar": bar,
        "at": round(100 * bar / largest, 2) if largest else 0.0,
    }
