"""The registry: what stands in it is so, and anybody's own method, metric, ablation and architecture is one line more."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from transformers import GPT2Config, GPT2LMHeadModel

import circuitdiscovery as cd
from circuitdiscovery import registry
from circuitdiscovery.cli.commands import cli
from circuitdiscovery.engine.ablation import Made
from circuitdiscovery.model.architectures.gpt2 import GPT2
from circuitdiscovery.reporting.folder import Run
from circuitdiscovery.reporting.panels.panel import Panel

# what every method may have, and the run gives by itself
COMMON = {
    "graph",
    "model",
    "task",
    "metric",
    "ablation",
    "split_qkv",
    "batch_size",
    "seed",
    "progress",
    "state",
}


def discovered(*arguments: str) -> Path:
    result = CliRunner().invoke(
        cli, ["discover", "toy", "ioi", "--examples", "4", *arguments, "--out", "run"]
    )
    assert result.exit_code == 0, result.exception
    return Path("run")


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_s_line_says_what_its_signature_says(name: str) -> None:
    known = registry.METHODS[name]
    parameters = signature(getattr(cd, name)).parameters
    own = {key: each.default for key, each in parameters.items() if key not in COMMON}
    assert set(known.options) == set(own)
    given = {key: default for key, default in known.options.items() if default is not None}
    assert given == {key: own[key] for key in given}
    assert set(known.options) <= set(registry.OPTIONS)


def test_a_metric_s_line_says_what_the_metric_does() -> None:
    """At the model's own logits a divergence is 0 and flat; a share is 0 or 1; a skewed one is never negative."""
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=8)
    batch = next(iter(task.batches(8)))
    from circuitdiscovery.engine.metrics import bind

    logits = torch.randn(8, model.vocab_size, generator=torch.Generator().manual_seed(0), requires_grad=True)
    better = logits.detach().clone()
    better[torch.arange(8), batch.correct[:, 0]] += 3
    own = {name: known for name, known in registry.METRICS.items() if str(known.home).startswith(".")}
    for name, known in own.items():
        bound = bind(name, model, task, plain=False).against(lambda _: logits.detach())
        values, raised = bound(logits, batch), bound(better, batch)
        if known.divergence:
            (gradient,) = torch.autograd.grad(values.sum(), logits)
            assert values.abs().max() < 1e-6 and gradient.abs().max() < 1e-6
        elif not known.share:
            assert ((raised > values) == known.higher_is_better).all(), name
        if known.share:
            assert set(values.tolist()) <= {0.0, 1.0}
        if known.skewed:
            assert raised.min() >= 0


def test_a_method_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)

    def last_first(model: cd.Model, task: cd.Task, *, steps: int = 1) -> cd.Scores:
        scores = cd.random(model, task)
        return replace(scores, values=scores.graph.allowed * steps, info={**scores.info, "method": "mine"})

    registry.METHODS["mine"] = registry.Method(last_first, "all edges alike", {"steps": 1})
    folder = discovered("--method", "mine", "--steps", "3", "--edges", "20", "--measure", "none")
    assert set(cd.Scores.load(folder / "scores.safetensors").values[cd.load_model("toy").graph.allowed]) == {
        3
    }
    assert len(cd.load_circuit(folder)) <= 20


def test_a_method_of_a_file_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("beside.py").write_text(
        "import circuitdiscovery as cd\n\n\ndef heads(model, task):\n"
        "    return cd.Circuit.from_nodes(model.graph, ['a0.h0', 'm0'])\n"
    )
    found = cd.load_circuit(discovered("--method", "beside:heads", "--measure", "none"))
    assert found.nodes == cd.Circuit.from_nodes(found.graph, ["a0.h0", "m0"]).nodes
    wrong = CliRunner().invoke(cli, ["discover", "toy", "ioi", "--method", "beside:tails"])
    assert wrong.exit_code == 2 and "'beside:tails'" in wrong.output and "tails" in wrong.output


def test_a_name_in_a_file_imports_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run or a task that names a module is refused: files are data. Typed by the user, the same name is imported."""
    monkeypatch.chdir(tmp_path)
    Path("named.py").write_text("from pathlib import Path\n\nPath('ran').touch()\n\n\ndef f(*_):\n    pass\n")
    folder = discovered("--method", "eap", "--edges", "9", "--measure", "none")
    record = folder / "run.json"
    record.write_text(record.read_text("utf-8").replace('"metric": null', '"metric": "named:f"'), "utf-8")
    assert "named:f" in record.read_text("utf-8")
    for command in ("evaluate", "explain"):
        refused = CliRunner().invoke(cli, [command, "run"])
        assert refused.exit_code != 0 and "named:f" in str(refused.exception or refused.output)
    with pytest.raises(cd.CircuitDiscoveryError, match="named:f"):
        cd.load_task("ioi", cd.load_model("toy"), examples=4, metric="named:f")
    assert not Path("ran").exists()
    assert registry.opened("metric", "named:f") == "named:f" and Path("ran").exists()


def test_a_metric_from_outside() -> None:
    def margin(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return logits.gather(-1, batch.correct[:, :1].expand(*logits.shape[:-1], 1))[..., 0] - logits.amax(-1)

    registry.METRICS["margin"] = registry.Metric(margin, "how far the answer is from the highest logit")
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=4)
    whole = cd.Circuit.full(model.graph)
    logits = cd.run_circuit(model, task, whole)
    answers = torch.tensor([example.correct[0] for example in task.examples])
    expected = (logits[torch.arange(4), answers] - logits.amax(-1)).mean()
    assert float(
        cd.evaluate(model, replace(task, held_out=None), whole, metric="margin").full
    ) == pytest.approx(float(expected), abs=1e-5)


def test_an_ablation_from_outside() -> None:
    def constant(model: cd.Model, **_: Any) -> Made:
        rows = registry.ABLATIONS["zero"].load()(model).rows
        return Made(lambda batch: rows(batch) + model.W_E.mean(0))

    registry.ABLATIONS["constant"] = registry.Ablation(constant, "the embeddings' mean")
    model = cd.load_model("toy")
    task = cd.load_task("ioi", model, examples=4)
    given = cd.replacements(model, task, ablation="constant")
    circuit = cd.eap(model, task, ablation="constant").top(50)
    by_name, by_object = (cd.run_circuit(model, task, circuit, ablation=each) for each in ("constant", given))
    assert torch.equal(by_name, by_object) and given.name == "constant"
    assert (by_name - cd.run_circuit(model, task, circuit, ablation="zero")).abs().max() > 1e-3


def test_an_architecture_from_outside() -> None:
    """A family that keeps GPT-2's weights under another model_type."""

    class MineConfig(GPT2Config):
        model_type = "mine"

    class Mine(GPT2LMHeadModel):
        config_class = MineConfig

    registry.ARCHITECTURES["mine"] = registry.Entry(GPT2, "GPT-2 by another name")
    torch.manual_seed(0)
    network = Mine(MineConfig(n_layer=2, n_head=2, n_embd=16, vocab_size=30, n_positions=8)).eval()
    model = cd.load_model((network, None), name="mine")
    rows = torch.randint(0, 30, (3, 5), generator=torch.Generator().manual_seed(1))
    task = cd.Task.from_tokens(clean=rows, corrupted=rows, correct=[1] * 3, incorrect=[2] * 3)
    logits = cd.run_circuit(model, task, cd.Circuit.full(model.graph))
    torch.testing.assert_close(logits, network(rows).logits[:, -1], atol=1e-5, rtol=1e-5)


def test_a_panel_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    template = '<section id="layers"><p>{{ layers }} layers of {{ evil }}</p></section>'

    def values(run: Run) -> dict[str, Any]:
        return {"layers": run.circuit.graph.n_layers, "evil": "<b>"}

    registry.PANELS["layers"] = registry.Entry(Panel(template, values, (("layers", "Layers"),)), "how deep")
    folder = discovered("--method", "eap", "--edges", "9", "--measure", "none")
    page = (folder / "report.html").read_text("utf-8")
    assert '<section id="layers"><p>4 layers of &lt;b&gt;</p></section>' in page
    assert '<a href="#layers">Layers</a></nav>' in page


def test_nodes_are_a_circuit_of_their_edges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`--level node`: all edges between the nodes of the largest damages, no more than asked for."""
    monkeypatch.chdir(tmp_path)
    folder = discovered("--method", "exact", "--level", "node", "--edges", "60", "--measure", "none")
    model = cd.load_model("toy")
    damages = cd.exact(model, cd.load_task("ioi", model, examples=4), level="node")
    ranked = sorted((node for node in damages if node != "input"), key=lambda node: -abs(damages[node]))
    sizes = [len(cd.Circuit.from_nodes(model.graph, ranked[:n])) for n in range(len(ranked) + 1)]
    count = max(n for n, size in enumerate(sizes) if size <= 60)
    assert cd.load_circuit(folder) == cd.Circuit.from_nodes(model.graph, ranked[:count])
