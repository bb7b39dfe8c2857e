"""One `discover`, from options to a run folder, stage by stage; journal.py
says how it goes on where it was stopped.

A folder holds circuit.json, scores.safetensors (where there are scores), evaluation.json, explanation.json
(the nodes' cards), report.json (what else the page shows), graph.dot, graph.svg, report.html (the page) and
run.json; without a measurement, no evaluation.json and no explanation.json. The same options give the same
bytes in all of them but run.json, which alone knows times, versions and the command.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitdiscovery.cli.files import taken_from
from circuitdiscovery.cli.journal import (
    STATE,
    Journal,
    earlier_run,
    going_on,
    now,
    whole,
)
from circuitdiscovery.cli.search import chosen, evaluate, search
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, ResumeError
from circuitdiscovery.files.disk import to_json, write_json
from circuitdiscovery.registry import OPTIONS
from circuitdiscovery.reporting.folder import (
    CIRCUIT,
    CONTENTS,
    EVALUATION,
    EXPLANATION,
    FILES,
    PAGE,
    SCORES,
    contents_in,
    evaluation_in,
    explanation_in,
    load,
    strongest_roles_of,
)
from circuitdiscovery.reporting.options import Options
from circuitdiscovery.reporting.progress import stage

if TYPE_CHECKING:
    from circuitdiscovery.circuit.circuit import Circuit
    from circuitdiscovery.circuit.scores import Scores
    from circuitdiscovery.model.model import Model
    from circuitdiscovery.task.task import Task


# that only the end of a run needs: it should not begin without them
WHEELS = ("graphviz", "pygraphviz", "jinja2")
Json = dict[str, Any]


def discover(options: Options, folder: Path, command: list[str], *, fresh: bool = False) -> Json:
    """Search, measure, draw and write into `folder`, where a run goes on unless it has to be a `fresh` one;
    what run.json then holds: among other things `summary`, and `report` for people.

    A finished run is not done again, unless more is to be measured than it has; what is gone or altered in it
    is. Whatever stops a run leaves what it found, and a note on the exception that says how to go on. Of
    several processes all search and measure, and the first one writes.
    """
    earlier = None if fresh else distributed.from_first(lambda: earlier_run(folder, options))
    options, over = going_on(options, earlier)
    if earlier is not None and over and distributed.from_first(lambda: whole(folder, earlier)):
        # it may have been moved since
        return earlier | {"summary": earlier["summary"] | {"folder": str(folder)}}
    from circuitdiscovery.engine import threads

    _check_wheels()
    run = _Run(options, Journal(folder, options, command, earlier))
    with threads.restored(), run.journal.told():
        run.all()
    return distributed.from_first(lambda: run.journal.record)


def _check_wheels() -> None:
    for name in WHEELS:
        try:
            import_module(name)
        except ImportError as error:
            raise CircuitDiscoveryError(
                f"a run draws with {name}, which cannot be imported ({error}): pip install {name}"
            ) from None


class _Run:
    """The stages of a run, in order; each takes what the folder has, or makes it and saves it at once."""

    def __init__(self, options: Options, journal: Journal) -> None:
        self.options, self.journal, self.folder = options, journal, journal.folder

    @cached_property
    def loaded(self) -> tuple[Model, Task]:
        """The model and the task, loaded when a stage first needs them."""
        from circuitdiscovery.engine import threads
        from circuitdiscovery.search.provenance import data_of

        with self.journal.stage("load", "loading"):
            model, task = load(self.options)
            self.journal.of_data(data_of(model, task))
            threads.choose(model, task, self.options.batch_size)
            return model, task

    def all(self) -> None:
        """Every stage, and run.json with the summary last."""
        circuit, scores = self.found()
        effort = self.effort(circuit)
        evaluation = self.evaluation(circuit, scores, effort)
        explanation, contents = self.explained(circuit, scores, evaluation, effort)
        if distributed.rank() == 0:
            self.drawn(circuit, explanation)
            self.summarised(circuit, evaluation, contents, effort)

    # ----------------------------------------------------------------- search

    def found(self) -> tuple[Circuit, Scores | None]:
        """The circuit and the scores it was taken from: the folder's, or what the search finds now."""
        from circuitdiscovery.circuit import circuit_json
        from circuitdiscovery.circuit.circuit import Circuit
        from circuitdiscovery.circuit.scores import Scores

        data, parts = distributed.from_first(self._in_folder)
        scores = None if parts is None else Scores(*parts)
        if data is None:
            circuit, scores = self._searched(scores)
            data = circuit.to_dict()
        # as it is read from the file: a run that goes on must not differ in a rounding
        return Circuit(*circuit_json.read(json.loads(to_json(data)), CIRCUIT)), scores

    def _searched(self, scores: Scores | None) -> tuple[Circuit, Scores | None]:
        if scores is None:
            model, task = self.loaded
            with self.journal.stage("search", "searching"):
                circuit, scores = search(model, task, self.options, state=self.folder / STATE)
        else:  # a run that stopped between its two files
            circuit = chosen(scores, self.options)

        def write() -> None:
            if scores is not None:
                scores.save(self.folder / SCORES)
            circuit.save(self.folder / CIRCUIT)

        self.journal.finish(CIRCUIT, SCORES, write=write)
        self._forget_states()  # of another circuit, that somebody removed
        if distributed.rank() == 0:
            (self.folder / STATE).unlink(missing_ok=True)
        return circuit, scores

    def _in_folder(self) -> tuple[Any, Any]:
        """(circuit.json, the arguments of its Scores) where they are there, and of this run."""
        from circuitdiscovery.circuit.load import load_circuit
        from circuitdiscovery.circuit.scores import Scores

        known: dict[str, Any] = {}
        for name, read in ((SCORES, Scores.load), (CIRCUIT, load_circuit)):
            if (self.folder / name).exists():
                claimed = self.journal.claims(name)
                if claimed and not self.journal.intact(name):
                    raise self._foreign(name, "it was changed since")
                try:
                    known[name] = found = read(self.folder / name)
                except CircuitDiscoveryError as error:
                    raise self._foreign(name, str(error)) from None
                if not claimed or self.journal.moved:
                    self._check_mine(name, found)
        circuit, scores = known.get(CIRCUIT), known.get(SCORES)
        taken = circuit is not None and "selection" in circuit.info.get("options", {})
        if scores is None and (taken or SCORES in self.journal.record["done"]):
            return None, None  # somebody removed the scores
        if circuit is not None and scores is not None and not taken_from(circuit, scores):
            raise self._foreign(CIRCUIT, f"its scores are not those of {SCORES}")
        data = None if circuit is None else circuit.to_dict()
        return data, None if scores is None else (scores.graph, scores.values, dict(scores.info))

    def _check_mine(self, name: str, found: Circuit | Scores) -> None:
        """Whether a file is of this run, of this model, task and options: one that run.json does not know, or
        any where the model's or the task's files lie elsewhere.
        """
        from circuitdiscovery.circuit.circuit import Circuit
        from circuitdiscovery.circuit.circuit_json import options_of
        from circuitdiscovery.engine.state import other_data
        from circuitdiscovery.search.provenance import data_of

        model, task = self.loaded
        try:
            Circuit(found.graph, found.graph.allowed, None, found.info).check_model(model)
        except CircuitDiscoveryError as error:
            raise self._foreign(name, str(error)) from None
        used = {"split_qkv": found.graph.split_qkv} | dict(options_of(found.info))
        used |= {
            "method": found.info.get("method"),
            "task": found.info.get("task"),
            "seed": found.info.get("seed"),
        }
        wanted = self.options.to_dict() | {"task": task.title, "seed": task.seed}
        for key in sorted(used.keys() & wanted.keys()):
            may_be = OPTIONS[key].may_be if key in OPTIONS else eq
            if wanted[key] is not None and not may_be(wanted[key], used[key]):
                raise self._foreign(name, f"its {key} is {used[key]!r}, not {wanted[key]!r}")
        nodes = self.options.parts(found.graph.n_layers * found.graph.has_mlp)
        if (there := {split.node for split in found.graph.splits}) != set(nodes):
            told, wanted = (", ".join(sorted(each)) or "no node" for each in (there, set(nodes)))
            raise self._foreign(name, f"it splits {told}, not {wanted}")
        if other := other_data(found.info.get("data", {}), data_of(model, task)):
            raise self._foreign(name, other)
        if found.info.get("examples") != len(task):
            raise self._foreign(name, f"it is of {found.info.get('examples')} examples, not {len(task)}")

    def _foreign(self, name: str, why: str) -> ResumeError:
        return ResumeError(
            f"{self.folder / name} is not of this run: {why}; put its own back, or remove it to search again"
        )

    # ---------------------------------------------------------------- measure

    def effort(self, circuit: Circuit) -> str:
        """How much is measured; where that is another effort than the run was begun
        with, what was measured then is made anew.
        """
        begun = distributed.from_first(lambda: self.journal.record.get("effort"))
        effort = self.options.measure or begun
        if effort is None:
            from circuitdiscovery.measure.evaluation import default_effort

            effort = default_effort(*self.loaded, circuit)
        if effort != begun:
            self.journal.forget(EVALUATION)
            self.journal.record["effort"] = effort
            self.journal.save()
        return effort

    def evaluation(self, circuit: Circuit, scores: Scores | None, effort: str) -> Json | None:
        """evaluation.json."""
        if effort == "none":
            self.journal.record["report"] = _unmeasured(circuit)
            self._forget_states()
            return None
        known = self._taken(EVALUATION, lambda: evaluation_in(self.folder, circuit))
        if known is not None:
            return known
        state = self.folder / f"measured-{effort}.state"
        model, task = self.loaded
        with self.journal.stage("evaluate", "measuring"):
            found = evaluate(model, task, circuit, scores, self.options, effort=effort, state=state)
        self.journal.record["report"] = str(found)
        values = json.loads(to_json(found.to_dict()))
        self.journal.finish(EVALUATION, write=lambda: write_json(self.folder / EVALUATION, values))
        self._forget_states()
        return values

    def _taken(self, name: str, read: Callable[[], Json | None]) -> Json | None:
        """What a file holds that is done, as the page reads it; None where it is to be made anew, as what
        another version of the package wrote may be. The same in all processes.
        """

        def taken() -> Json | None:
            try:
                return read() if self.journal.intact(name) else None
            except CircuitDiscoveryError:
                return None

        return distributed.from_first(taken)

    def _forget_states(self) -> None:
        for left in self.folder.glob("measured-*.state") if distributed.rank() == 0 else ():
            left.unlink()

    # ---------------------------------------------------------------- explain

    def explained(
        self, circuit: Circuit, scores: Scores | None, evaluation: Json | None, effort: str
    ) -> tuple[Json | None, Json]:
        """explanation.json, where there are cards, and report.json."""
        from circuitdiscovery.reporting.data import contents_of, explanation_of

        contents = self._taken(CONTENTS, lambda: contents_in(self.folder, circuit, effort))
        if contents is not None and contents["no_cards"] is not None:
            return None, contents
        explanation = self._taken(EXPLANATION, lambda: explanation_in(self.folder, circuit))
        if contents is not None and explanation is not None:
            return explanation, contents
        model, task = self.loaded
        no_cards = None
        if explanation is None:
            with self.journal.stage("explain", "explaining"):
                explanation, no_cards = explanation_of(model, task, circuit, self.options, effort)

            def write() -> None:
                if explanation is None:
                    (self.folder / EXPLANATION).unlink(missing_ok=True)
                else:
                    write_json(self.folder / EXPLANATION, explanation)

            self.journal.finish(EXPLANATION, write=write)
        with self.journal.stage("compare", "comparing with the model"):
            contents = contents_of(model, task, circuit, scores, evaluation, self.options, effort, no_cards)
        self.journal.finish(CONTENTS, write=lambda: write_json(self.folder / CONTENTS, contents))
        return explanation, contents

    # ------------------------------------------------------------------- draw

    def drawn(self, circuit: Circuit, explanation: Json | None) -> None:
        """The drawings, with the roles that were found, and the page. For the first process."""
        from circuitdiscovery.reporting.page import write_page

        with self.journal.stage("write", "drawing"), stage("drawing"):
            if not (self.journal.intact("graph.dot") and self.journal.intact("graph.svg")):
                roles = strongest_roles_of(explanation["cards"]) if explanation else {}
                coloured = circuit.with_roles(roles) if roles else circuit

                def write() -> None:
                    for name in ("graph.dot", "graph.svg"):
                        coloured.draw(self.folder / name)

                self.journal.finish("graph.dot", "graph.svg", write=write)
            self.journal.finish(PAGE, write=lambda: write_page(self.folder, self.folder / PAGE))

    def summarised(self, circuit: Circuit, evaluation: Json | None, contents: Json, effort: str) -> None:
        """run.json's last state. For the first process."""
        import torch

        from circuitdiscovery.reporting.sentences import TOLD, told, warnings

        record = self.journal.record
        record |= {
            "finished": now(),
            "threads": torch.get_num_threads(),
            "processes": distributed.world_size(),
        }
        said = (line for line in record["report"].splitlines() if line.split(" ")[0] not in TOLD)
        record["report"] = "\n".join([*said, *told(evaluation, contents)])
        record["summary"] = {
            "model": self.options.model,
            "task": self.options.task,
            "method": self.options.method,
            "edges": len(circuit),
            "edges_pruned": len(circuit.pruned()),
            "edges_total": len(circuit.graph),
            "measured": effort,
            "evaluation": evaluation,
            "scores": contents["scores"],
            "warnings": warnings(evaluation, contents),
            "seconds": dict(record["seconds"]),
            "folder": str(self.folder),
            "files": [name for name in FILES if name == "run.json" or (self.folder / name).exists()],
        }
        self.journal.save()


def _unmeasured(circuit: Circuit) -> str:
    """What is printed of a circuit that was not measured."""
    whole, total = len(circuit.pruned()), len(circuit.graph)
    return f"{'circuit':<13} {len(circuit):,} edges ({whole:,} on a path from input to logits) of {total:,}"
