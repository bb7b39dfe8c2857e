"""Loading a circuit: from a .json file, the folder of a run, or one of those that are shipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from circuitdiscovery.arguments import guarded
from circuitdiscovery.circuit import mib
from circuitdiscovery.circuit.circuit import CIRCUIT_FILE, Circuit
from circuitdiscovery.errors import CircuitDiscoveryError, shown, unknown
from circuitdiscovery.files.disk import data_folder, is_folder, read_json, shipped


@guarded
def load_circuit(
    name_or_path: str | Path,
    *,
    n_kv_heads: int | None = None,
    dictionaries: Mapping[str, Any] | None = None,
) -> Circuit:
    """A circuit from a .json file (circuit.json, or MIB's), from the folder of a
    run, or a shipped one such as "gpt2/ioi".

    Args:
        name_or_path: what ends in .json is a path, and so is a folder.
        n_kv_heads: key/value groups of the model; MIB's JSON does not say where they are fewer than heads.
            Only for that format.
        dictionaries: node -> the dictionary whose features its parts are. A circuit of features loads,
            compares and draws without it; to run it needs it.

    Returns:
        The circuit, with its scores and provenance where the file has some.

    Raises:
        CircuitDiscoveryError: no such circuit; a file that says something else than a circuit, by file and
            field; a dictionary of a node without features, or another one than the circuit's; n_kv_heads
            where the file itself says it.
    """
    path = circuit_file(name_or_path)
    data = read_json(path)
    if mib.is_mib(data):
        circuit = Circuit(*mib.read(data, str(path), n_kv_heads))
    else:
        mib.only_here(n_kv_heads, str(path))
        circuit = Circuit.from_dict(data, str(path))
    return _with_dictionaries(circuit, dictionaries, str(path)) if dictionaries else circuit


def _with_dictionaries(circuit: Circuit, dictionaries: Mapping[str, Any], where: str) -> Circuit:
    """The circuit with what computes its features."""
    splits = {split.node: split for split in circuit.graph.splits}
    features = [node for node, split in splits.items() if split.kind == "features"]
    for node, dictionary in dictionaries.items():
        if node not in features:
            told = f"only {', '.join(features)}" if features else "no node"
            raise CircuitDiscoveryError(f"{where}: {told} is split into features, so not {shown(node)}")
        digest, wanted = getattr(dictionary, "digest", None), splits[node].digest
        if not isinstance(digest, str):
            raise CircuitDiscoveryError(f"the dictionary of {node} is none: it has no digest")
        if digest != wanted:
            raise CircuitDiscoveryError(
                f"{where}: {node} is split by the dictionary {wanted[:12]}, not by the given {digest[:12]}"
            )
        if getattr(dictionary, "site", node) is None:
            dictionary = replace(dictionary, site=node)
        splits[node] = replace(splits[node], dictionary=dictionary)
    graph = replace(circuit.graph, splits=tuple(splits.values()))
    return Circuit(graph, circuit.mask, circuit.scores, circuit.info)


def _why_none(record: Path) -> str:
    """Why a folder has no circuit."""
    if not record.is_file():
        return "it is not the folder of a run"
    known = read_json(record)
    finished = isinstance(known, dict) and "summary" in known
    return "it was removed from the finished run there" if finished else "the run in it has found none yet"


def circuit_file(name_or_path: str | Path) -> Path:
    """The file that a shipped circuit's name, a path or a run's folder means."""
    name, path = str(name_or_path), Path(name_or_path)
    names = shipped("graphs")
    if name in names:
        return data_folder("graphs") / f"{name}.json"
    if is_folder(path):
        if not (path / CIRCUIT_FILE).is_file():
            what = _why_none(path / "run.json")
            raise CircuitDiscoveryError(f"{path} holds no {CIRCUIT_FILE}: {what}")
        return path / CIRCUIT_FILE
    if path.suffix.lower() == ".json":
        return path
    family = name.partition("/")[0]
    if "/" in name and family in shipped("models"):
        raise CircuitDiscoveryError(
            f"no circuit of {family} is shipped; find one, such as cd.acdc. Valid graphs: {', '.join(names)}"
        )
    if "/" in name and family not in {other.partition("/")[0] for other in names} and not path.exists():
        raise CircuitDiscoveryError(
            f"there is no folder {shown(name)}; a circuit is a .json file, the folder of a run, or one "
            f"of {', '.join(names)}"
        )
    raise CircuitDiscoveryError(
        f"{unknown('graph', name, names)}; or a path that ends in .json, or the folder of a run"
    )


def published_name(circuit: Circuit) -> str | None:
    """Which of the shipped circuits it is, or a part of, where it names no model."""
    task = circuit.info.get("task")
    alike = [
        name
        for name in shipped("graphs")
        if name.endswith(f"/{task}") and circuit.info.get("method") == "published"
    ]
    return next((name for name in alike if load_circuit(name).graph == circuit.graph), None)
