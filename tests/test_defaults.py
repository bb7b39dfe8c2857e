"""What discover takes by the size of a model's graph: the number of edges
from a config is that of the loaded model.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Tiny, save_tiny

import circuitdiscovery as cd
from circuitdiscovery.cli.defaults import LARGE, default_method, edges_of
from circuitdiscovery.registry import default_edges


def test_the_edges_of_a_config_are_the_graphs(any_model: Tiny) -> None:
    assert edges_of(str(any_model.folder)) == len(cd.Graph.from_model(any_model.model))


def test_a_published_count() -> None:
    """GPT-2 small has 32,491 edges (Conmy et al. 2023, as counted in the contract): above the bound."""
    assert len(cd.Graph(12, 12, 12)) == 32_491 > LARGE


def test_a_large_graph_is_learnt(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "deep", "llama", num_hidden_layers=40)
    found = edges_of(str(folder))
    assert found == len(cd.Graph(40, 4, 2)) > LARGE
    assert default_method(str(folder)) == "matryoshka"
    assert default_method("toy") == "acdc"


@pytest.mark.parametrize(
    "text", ["{}", "[]", "not JSON", '{"n_layer": "many", "n_head": 2}', '{"n_layer": 2, "n_head": 0}']
)
def test_a_config_that_says_nothing_is_left_to_loading(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert edges_of(str(tmp_path)) is None
    assert default_method(str(tmp_path)) == "acdc"


def test_how_many_edges() -> None:
    assert [default_edges(n) for n in (1, 479, 5_644, 20_000, 32_491, 70_651)] == [1, 48, 200, 200, 325, 707]
