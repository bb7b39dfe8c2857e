"""Writes the circuits that people found by hand, as the papers describe them, into graphs/.

    python benchmarks/published.py

IOI: Wang et al. 2022 (arXiv 2211.00593), figure 2, as edges between heads and MLPs in the way of Conmy et al.
2023 (arXiv 2304.14997), appendix: every MLP belongs to `input` and to `logits`, so a connection may pass
through any of them. Greater-than: Hanna et al. 2023 (arXiv 2305.00586). Docstring: Heimersheim and Janiak
2023, of TransformerLens' `attn-only-4l`. Induction: Shi et al. 2024 (arXiv 2410.13032), the circuit of their
repository (blei-lab/circuitry) for `redwood_attn_2l`, the model of Conmy et al., who have no ground truth for
it. It is a Shortformer, not TransformerLens' `attn-only-2l`, which has as many layers and heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import circuitdiscovery as cd
from circuitdiscovery.files.disk import data_folder

GPT2 = cd.Graph(12, 12, 12)
ALL_MLPS = [f"m{layer}" for layer in range(12)]

IOI = {
    "name mover": "9.9 10.0 9.6",
    "backup name mover": "10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
    "negative name mover": "10.7 11.10",
    "S-inhibition": "7.3 7.9 8.6 8.10",
    "induction": "5.5 5.8 5.9 6.9",
    "duplicate token": "0.1 0.10 3.0",
    "previous token": "2.2 4.11",
}
MOVERS = ("name mover", "backup name mover", "negative name mover")
IOI_CONNECTIONS = [  # from, to, letters
    ("input", "previous token", "qkv"),
    ("input", "duplicate token", "qkv"),
    ("input", "S-inhibition", "q"),
    *(("input", mover, "kv") for mover in MOVERS),
    ("previous token", "induction", "kv"),
    ("induction", "S-inhibition", "kv"),
    ("duplicate token", "S-inhibition", "kv"),
    *(("S-inhibition", mover, "q") for mover in MOVERS),
]
GREATER_THAN = {"A": "0.3 0.5", "B": "0.1", "C": "5.5 6.1 6.9 7.10 8.11 9.1"}
DOCSTRING = """input->0.5<v> 0.5->1.4<v> input->1.4<v> input->1.2<q> 0.5->1.2<q> input->1.2<k> 0.5->1.2<k> input->2.0<q> 0.5->2.0<q>
    input->2.0<k> 0.5->2.0<k> 1.4->2.0<v>"""
DOCSTRING_MOVER = "1.4->{0}<q> 2.0->{0}<k> 1.2->{0}<k> input->{0}<v> 0.5->{0}<v> {0}->logits"
INDUCTION = "input->0.0<v> 0.0->1.6<k> input->1.6<q> input->1.6<v> 1.6->logits input->logits"


def heads(text: str) -> list[str]:
    """["a9.h9", ...] from "9.9 ..."."""
    return [f"a{layer}.h{head}" for layer, head in (name.split(".") for name in text.split())]


def into(sources: Iterable[str], readers: Iterable[str], letters: str = "qkv") -> Iterator[str]:
    """The edges that there are from sources into heads (by letter), MLPs or the logits."""
    for source in sources:
        for reader in readers:
            for receiver in (
                [f"{reader}<{letter}>" for letter in letters] if reader.startswith("a") else [reader]
            ):
                row, column = GPT2.source_index[source], GPT2.receiver_index[receiver]
                if GPT2.allowed[row, column]:
                    yield f"{source}->{receiver}"


def ioi() -> cd.Circuit:
    """963 edges."""
    roles = {role: heads(text) for role, text in IOI.items()}
    everyone = [head for role in roles.values() for head in role]
    edges = {
        edge
        for source, role, letters in IOI_CONNECTIONS
        for edge in into(roles.get(source, [source]), roles[role], letters)
    }
    edges |= {*into(ALL_MLPS, everyone), *into(everyone, ALL_MLPS), *into(ALL_MLPS, ALL_MLPS)}
    edges |= {*into(["input", *ALL_MLPS], ["logits"]), *into(["input"], ALL_MLPS)}
    edges |= {edge for mover in MOVERS for edge in into(roles[mover], ["logits"])}
    source = "Wang et al. 2022 (arXiv 2211.00593); MLPs as in Conmy et al. 2023 (arXiv 2304.14997)"
    return described(GPT2, edges, "ioi", source, roles)


def greater_than() -> cd.Circuit:
    """235 edges."""
    a, b, c = (heads(GREATER_THAN[group]) for group in "ABC")
    early, late = ALL_MLPS[:4], ALL_MLPS[8:]
    edges = {
        *into(["input"], [*a, *b, *early]),
        *into([*c, *late], ["logits"]),
        *into(b, early),
        *into([*a, *b, *early], c),
    }
    edges |= {f"{i}->{j}" for group in (early, late, ALL_MLPS[:9]) for i, j in combinations(group, 2)}
    edges |= {*into(c, late), *into(ALL_MLPS, c, "q")}
    roles = {"early head": [*a, *b], "early MLP": early, "mid head": c, "late MLP": late}
    return described(GPT2, edges, "greater_than", "Hanna et al. 2023 (arXiv 2305.00586)", roles)


def described(
    graph: cd.Graph, edges: Iterable[str], task: str, source: str, roles: dict[str, list[str]]
) -> cd.Circuit:
    """The circuit with where it comes from."""
    return cd.Circuit(
        graph,
        graph.mask(edges),
        info={"task": task, "method": "published", "options": {"source": source}, "roles": roles},
    )


def attention_only(n_layers: int, text: str, task: str, source: str, roles: dict[str, str]) -> cd.Circuit:
    """A circuit of a model of 8 heads a layer without MLPs, from edges such as "0.5->1.4<v>"."""
    graph = cd.Graph(n_layers, 8, 8, has_mlp=False)
    ends = [edge.split("->") for edge in text.split()]
    named = [
        [end if end in ("input", "logits") else "a" + end.replace(".", ".h") for end in pair] for pair in ends
    ]
    return described(
        graph,
        ["->".join(pair) for pair in named],
        task,
        source,
        {role: heads(names) for role, names in roles.items()},
    )


def circuits() -> dict[str, cd.Circuit]:
    """Every published circuit by its name in graphs/."""
    movers = " ".join(DOCSTRING_MOVER.format(head) for head in ("3.0", "3.6"))
    return {
        "gpt2/ioi": ioi(),
        "gpt2/greater_than": greater_than(),
        "attn-only-4l/docstring": attention_only(
            4,
            f"{DOCSTRING} {movers}",
            "docstring",
            "Heimersheim and Janiak 2023 (Alignment Forum)",
            {"argument mover": "3.0 3.6"},
        ),
        "redwood_attn_2l/induction": attention_only(
            2,
            INDUCTION,
            "induction",
            "Shi et al. 2024 (arXiv 2410.13032), get_induction_canonical_circuit",
            {"previous token": "0.0", "induction": "1.6"},
        ),
    }


def main() -> None:
    print("| graph | edges | of |\n| --- | --- | --- |")
    for name, circuit in circuits().items():
        path: Path = data_folder("graphs") / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        circuit.save(path)
        print(f"| {name} | {len(circuit):,} | {len(circuit.graph):,} |")


if __name__ == "__main__":
    main()
