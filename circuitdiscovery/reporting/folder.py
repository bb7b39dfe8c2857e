"""A run folder read back: what each file must say, and the model and the task that the run names.

Files of an older version may lack what the page shows (`explanation.json`,
`report.json`); what they hold is checked all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.errors import CircuitDiscoveryError, shown
from circuitdiscovery.files.disk import read_json, to_json
from circuitdiscovery.reporting.options import DRAWN_WITH, Options, checked
from circuitdiscovery.reporting.progress import stage
from circuitdiscovery.reporting.shapes import (
    CONTENTS_SHAPE,
    EVALUATION_SHAPE,
    EXPLANATION_SHAPE,
    ROLES_SHAPE,
    Shape,
)

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task

CIRCUIT, SCORES, EVALUATION = "circuit.json", "scores.safetensors", "evaluation.json"
EXPLANATION, CONTENTS, PAGE = "explanation.json", "report.json", "report.html"
# in the order of writing
FILES = (CIRCUIT, SCORES, EVALUATION, EXPLANATION, CONTENTS, "graph.dot", "graph.svg", PAGE, "run.json")
NOT_MEASURED = "not measured"  # why there is no curve, no card, no table of prompts
NOT_ASKED: Mapping[str, Any] = {"metric": "", "ablation": "", "direction": "", "part": "", "examples": 0}
FORMAT = "circuitdiscovery report 1"
LARGEST = 1e30  # of any number: what is larger is of a broken file, and its square would be infinite


@dataclass(frozen=True)
class Run:
    """A run folder's files.

    Args:
        options: what the run was asked for.
        circuit: what it found.
        evaluation: evaluation.json; of a circuit that was not measured
            only how large it is, and what was asked.
        explanation: explanation.json; None where there is none of this circuit.
        contents: report.json (see reporting/data.py); None where there is none of this circuit.
        missing: why `explanation` and `contents` could not be made, where that was tried.
    """

    folder: Path
    options: Options
    circuit: Circuit
    evaluation: Mapping[str, Any]
    explanation: Mapping[str, Any] | None
    contents: Mapping[str, Any] | None
    missing: str | None = None

    @property
    def effort(self) -> str:
        """How much of the circuit was measured: none, quick or full."""
        return str(self.evaluation["effort"])

    def scores(self) -> Scores | None:
        """The scores that the circuit was taken from, where there are some."""
        from circuitdiscovery.circuit.scores import Scores

        path = self.folder / SCORES
        return Scores.load(path) if path.exists() else None


# ------------------------------------------------------------------- reading


def recorded(folder: Path) -> dict[str, Any]:
    """What run.json in a folder says: the options, and once the run is finished its summary. Earlier versions
    noted an ablation beside denoising, which did nothing: it is `resample`, as it is named now.
    """
    record = read_json(folder / "run.json")
    if not isinstance(record, dict) or not isinstance(record.get("options"), dict):
        raise CircuitDiscoveryError(f"{folder / 'run.json'}: the field 'options' is missing")
    if record["options"].get("direction") == "denoising":
        record["options"]["ablation"] = "resample"
    return record


def finished(folder: Path) -> None:
    """Refuse a folder that is not that of a finished run."""
    if not folder.is_dir() or not (folder / "run.json").exists():
        what = (
            "it has no run.json"
            if folder.is_dir()
            else "it is a file"
            if folder.exists()
            else "there is no such folder"
        )
        raise CircuitDiscoveryError(f"{folder} is not a run folder: {what}")
    record = recorded(folder)
    if "summary" not in record:
        how = _options(record, folder).resume_command(folder)
        raise CircuitDiscoveryError(
            f"the run in {folder} is not finished{_lacking(record, folder)}; go on with: {how}"
        )


def _lacking(record: Mapping[str, Any], folder: Path) -> str:
    """What an unfinished run that has found its circuit has not made
    yet; nothing of one that is still searching.
    """
    if not (folder / CIRCUIT).exists():
        return ""
    unmeasured = (EVALUATION, EXPLANATION) if record.get("effort") == "none" else ()
    missing = [
        name
        for name in FILES
        if name not in (SCORES, "run.json", *unmeasured) and not (folder / name).exists()
    ]
    there = f": {CIRCUIT} is there"
    return f"{there}, {listed(missing)} {'is' if len(missing) == 1 else 'are'} missing" if missing else there


def listed(names: Sequence[str]) -> str:
    """`a, b and c`.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def read(folder: Path) -> Run:
    """The files of a run folder, checked.

    Raises:
        CircuitDiscoveryError: a file that is missing, broken, or of another
            circuit than circuit.json; by file and field.
    """
    from circuitdiscovery.circuit.load import load_circuit

    record = recorded(folder)
    options = _options(record, folder)
    circuit = load_circuit(folder / CIRCUIT)
    run = Run(folder, options, circuit, _evaluation(record, folder, circuit), None, None)
    return completed(run, *_explained(folder, circuit, run.effort))


def completed(run: Run, explanation: Mapping[str, Any] | None, contents: Mapping[str, Any] | None) -> Run:
    """A run with its cards and what else the page shows."""
    asked = contents["asked"] if contents is not None and run.effort == "none" else {}
    return replace(run, explanation=explanation, contents=contents, evaluation={**run.evaluation, **asked})


def _evaluation(record: Mapping[str, Any], folder: Path, circuit: Circuit) -> dict[str, Any]:
    """evaluation.json; where nothing was measured, how large the circuit is."""
    if record.get("effort") == "none":
        counts = {
            "edges": len(circuit),
            "edges_pruned": len(circuit.pruned()),
            "edges_total": len(circuit.graph),
        }
        return {"effort": "none", **counts, "normalized": None, "reason": NOT_MEASURED, **NOT_ASKED}
    return evaluation_in(folder, circuit)


def evaluation_in(folder: Path, circuit: Circuit) -> dict[str, Any]:
    """evaluation.json.

    Raises:
        CircuitDiscoveryError: no such file; one that is broken, or of a circuit of another size.
    """
    path, edges = folder / EVALUATION, len(circuit)
    known = _since(read_json(path), effort="full", empty_kl=None)
    if isinstance(known, dict) and "minimality" in known:
        known["minimality"] = _since(known["minimality"], unmeasured=[])
    evaluation = _like(known, EVALUATION_SHAPE, str(path))
    if evaluation["edges"] != edges:
        raise CircuitDiscoveryError(
            f"{path} is of a circuit of {evaluation['edges']} edges, but {CIRCUIT} has {edges}"
        )
    return evaluation


def _explained(
    folder: Path, circuit: Circuit, effort: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """explanation.json and report.json, where both are there and of this circuit."""
    contents = contents_in(folder, circuit, effort)
    if contents is None or contents["no_cards"] is not None:
        return None, contents
    explanation = explanation_in(folder, circuit)
    return (None, None) if explanation is None else (explanation, contents)


def contents_in(folder: Path, circuit: Circuit, effort: str) -> dict[str, Any] | None:
    """report.json, where it is there, and of this circuit, measured so much.

    Raises:
        CircuitDiscoveryError: a broken file; by field.
    """
    if not (folder / CONTENTS).exists():
        return None
    added = {"effort": "full", "scores": None, "searched": None, "asked": NOT_ASKED}
    known = _since(read_json(folder / CONTENTS), **added)
    if isinstance(known, dict) and known.get("scores") is not None:
        known["scores"] = _since(known["scores"], damage=None)
    contents = _like(known, CONTENTS_SHAPE, str(folder / CONTENTS))
    _same_length(folder / CONTENTS, "example", contents["example"]["clean"], contents["example"]["corrupted"])
    if contents["curve"] is not None:
        _same_length(folder / CONTENTS, "curve", contents["curve"]["edges"], contents["curve"]["normalized"])
    wanted = FORMAT, fingerprint(circuit), effort
    return contents if (contents["format"], contents["circuit"], contents["effort"]) == wanted else None


def explanation_in(folder: Path, circuit: Circuit) -> dict[str, Any] | None:
    """explanation.json, where it is there and of nodes of this circuit.

    Raises:
        CircuitDiscoveryError: a broken file; by field.
    """
    if not (folder / EXPLANATION).exists():
        return None
    explanation = _like(
        with_roles(_since(read_json(folder / EXPLANATION), unmeasured=[])),
        EXPLANATION_SHAPE,
        str(folder / EXPLANATION),
    )
    for node, card in explanation["cards"].items():
        for pattern in card["patterns"]:
            _check_pattern(folder / EXPLANATION, f"cards.{node}.patterns", pattern)
        for snippet in (each for unit in card["units"] for each in unit["snippets"]):
            _same_length(
                folder / EXPLANATION, f"cards.{node}.units", snippet["tokens"], snippet["activations"]
            )
    strangers = set(explanation["cards"]) - set(circuit.nodes)
    return None if strangers else explanation


def cards_beside(path: Path, circuit: Circuit) -> dict[str, Any]:
    """The circuit's cards in the explanation.json beside a circuit.json; none where there is no such file."""
    file = path.parent / EXPLANATION
    if path.name != CIRCUIT or not file.exists():
        return {}
    cards = _like(with_roles(read_json(file)), ROLES_SHAPE, str(file))["cards"]
    return {node: card for node, card in cards.items() if node in circuit.nodes}


def _check_pattern(path: Path, field: str, pattern: Mapping[str, Any]) -> None:
    tokens, weights = pattern["tokens"], pattern.get("weights")
    _same_length(path, field, tokens, *([] if weights is None else [weights, *weights]))
    cells = pattern["strongest"] if weights is None else ()
    if not all(0 <= place < len(tokens) for *places, _ in cells for place in places):
        raise CircuitDiscoveryError(f"{path}: the field {field!r} has weights of tokens that there are not")


def _same_length(path: Path, field: str, *lists: Sequence[Any]) -> None:
    if len({len(each) for each in lists}) > 1 or not lists[0]:
        raise CircuitDiscoveryError(f"{path}: the field {field!r} holds lists that do not fit together")


def fingerprint(circuit: Circuit) -> str:
    """The same for the same circuit, found in the same weights in the same way."""
    return sha256(to_json(circuit.to_dict()).encode()).hexdigest()


def _options(record: Mapping[str, Any], folder: Path) -> Options:
    """The options in run.json; an older version's may be fewer."""
    known = checked(record["options"], str(folder / "run.json"), names_too=False)  # they are only shown
    for name in ("model", "task"):
        if name not in known:
            raise CircuitDiscoveryError(f"{folder / 'run.json'}: the field 'options.{name}' is missing")
    return Options.of(known)


def roles_of(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Role -> nodes, in the order in which they act; a node with several roles stands in each."""
    roles: dict[str, list[str]] = {}
    for node, card in cards.items():
        for role in card["roles"]:
            roles.setdefault(role, []).append(node)
    return roles


def strongest_roles_of(cards: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The same roles, with the nodes whose strongest role each is: a node has one colour in a drawing."""
    return {
        role: [node for node in nodes if next(iter(cards[node]["roles"])) == role]
        for role, nodes in roles_of(cards).items()
    }


def load(options: Options) -> tuple[Model, Task]:
    """The model and the task that options name."""
    model = model_of(options)
    from circuitdiscovery.task.load import load_task

    return model, load_task(options.task, model, **options.some(*DRAWN_WITH))


def model_of(options: Options) -> Model:
    """The model that options name; this is where torch is imported."""
    with stage("loading"):
        from circuitdiscovery.model.load import load_model

        return load_model(options.model, device=options.device, dtype=options.dtype)


def _since(value: Any, **added: Any) -> Any:
    """A file's object with what an older version did not write."""
    return {**added, **value} if isinstance(value, dict) else value


def with_roles(explanation: Any) -> Any:
    """An explanation's object, whose cards have `roles`: role -> evidence. Of an older version they have one
    role at most. Cards without units or probes have none.
    """
    cards = explanation.get("cards") if isinstance(explanation, dict) else None
    for card in cards.values() if isinstance(cards, dict) else ():
        if isinstance(card, dict) and "roles" not in card:
            role = card.get("role")
            card["roles"] = {role: card.get("evidence", [])} if isinstance(role, str) else {}
        if isinstance(card, dict):
            card |= {"units": card.get("units", []), "probes": card.get("probes", {})}
    return explanation


def _like(value: Any, shape: Shape, where: str, field: str = "") -> Any:
    """The value where it is of that shape, else an error that names the file and the field."""
    problem = _problem(value, shape, field)
    if problem is not None:
        raise CircuitDiscoveryError(f"{where}: {problem}")
    return value


def _problem(value: Any, shape: Shape, field: str) -> str | None:
    """What is wrong with a value, or None."""
    if value is ...:
        return f"the field {field!r} is missing"
    if isinstance(shape, tuple):
        problems = [_problem(value, each, field) for each in shape]
        return None if None in problems else problems[0]
    if isinstance(shape, type):
        right = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
        right = right and not (isinstance(value, int | float) and abs(value) > LARGEST)
        return None if right else f"the field {field!r} must not be {_shown(value)}"
    if not isinstance(value, type(shape)):
        return (
            f"the field {field!r} must not be {_shown(value)}"
            if field
            else f"must hold an object, not {_shown(value)}"
        )
    if isinstance(shape, list):
        if len(value) != len(shape) > 1:
            return f"the field {field!r} must hold {len(shape)} things, not {len(value)}"
        parts = [(str(i), each, shape[i] if len(shape) > 1 else shape[0]) for i, each in enumerate(value)]
    elif "*" in shape:
        parts = [(name, each, shape["*"]) for name, each in value.items()]
    else:
        parts = [(name, value.get(name, ...), each) for name, each in shape.items()]
    found = (_problem(each, wanted, f"{field}.{name}".lstrip(".")) for name, each, wanted in parts)
    return next((problem for problem in found if problem is not None), None)


def _shown(value: Any) -> str:
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else shown(value)
