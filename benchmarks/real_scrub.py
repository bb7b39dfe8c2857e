"""A hypothesis about IOI in SmolLM2-135M and its rivals, by causal scrubbing.

    python benchmarks/real_scrub.py [--examples 48] [--draws 3] [--renamed 10] [--prompts 192]

Five heads of layer 23 write to the logits. Their keys and values may depend on both names and on where these
stand; their queries on nothing but what two S-inhibition heads say. The hypothesis is that these say where the
names stand (`order`); the rivals, that they say which name is repeated (`S`), or nothing that matters.

Hypotheses exchange what passes by what passes on other prompts that agree on these variables. So that many do,
the task has six names and two templates, and prompts are drawn beside those that are measured. A 24th layer's
negative name mover is left out: with it the tree of paths would have more than 10,000 nodes.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from real_models import MODELS, folder_of

import circuitdiscovery as cd
from circuitdiscovery.files.disk import data_folder

MOVERS = ("a23.h0", "a23.h1", "a23.h2", "a23.h3", "a23.h7")  # a23.h3 suppresses the wrong answer
INHIBITION = ("a20.h0", "a19.h2")
NAMES = ("Mary", "John", "Alice", "James", "Anna", "Robert")
TEMPLATES = 2


def few_names(folder: Path) -> Path:
    """The shipped task with a few names and templates."""
    text = (data_folder("tasks") / "ioi.toml").read_text("utf-8")
    listed = ", ".join(f'"{name}"' for name in NAMES)
    text = re.sub(r"^name = \[.*?^\]", f"name = [{listed}]", text, count=1, flags=re.DOTALL | re.MULTILINE)
    found = re.search(r"^templates = \[\n(.*?)^\]", text, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    kept = "\n".join(found[1].splitlines()[:TEMPLATES])
    path = folder / "ioi_few_names.toml"
    path.write_text(text.replace(found[0], f"templates = [\n{kept}\n]"), "utf-8")
    return path


def hypothesis(graph: cd.Graph, task: cd.Task, says: list[str]) -> cd.Hypothesis:
    """What the S-inhibition heads say to the movers' queries is a function of these variables."""
    everything, edges = ["IO", "S", "order"], {}
    for column, receiver in enumerate(graph.receivers):
        if not set(graph.reader_nodes(receiver)) & set(MOVERS):
            continue
        for row in graph.allowed[:, column].nonzero()[0]:
            source = graph.sources[row]
            if not receiver.endswith("<q>"):
                edges[f"{source}->{receiver}"] = everything
            elif source in INHIBITION:
                edges[f"{source}->{receiver}"] = says
    edges |= {f"{head}->logits": everything for head in MOVERS}
    name = f"S-inhibition says {' and '.join(says) or 'nothing'}"
    return cd.Hypothesis(task.name, {}, edges, shared=("template",), name=name)


def main() -> None:
    """Print the three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("examples", 48), ("draws", 3), ("renamed", 10), ("prompts", 192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    model = cd.load_model(folder_of(MODELS["smollm2-135m"]))
    with tempfile.TemporaryDirectory() as folder:
        path = few_names(Path(folder))
        task = cd.load_task(path, model, examples=given.examples)
        prompts = cd.load_task(path, model, examples=given.prompts, seed=1)
    for says in (["order"], ["S"], []):
        renamed = given.renamed if says == ["order"] else 0
        tested = hypothesis(model.graph, task, says)
        print(cd.scrub(model, task, tested, prompts=prompts, draws=given.draws, renamed=renamed), flush=True)


if __name__ == "__main__":
    main()
