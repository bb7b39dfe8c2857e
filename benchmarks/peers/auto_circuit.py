"""AutoCircuit (Miller, PyPI `auto-circuit`) on the same weights and prompts, in
multiples of a plain Hugging Face forward.

    PEER_PYTHON benchmarks/peers/auto_circuit.py FOLDER [--threads 2]
    [--repetitions 3] [--decisions 204] [--repaired]

It runs in AutoCircuit's own environment (README.md here), never imports
circuitdiscovery, and prints one JSON object.

- The weights go through TransformerLens's own converter into a HookedTransformer with nothing folded or
  centred; unless its logits are Hugging Face's, nothing is measured. The patchable model is factorized, with
  separate queries, keys and values.
- `eap` is `mask_gradient_prune_scores` at mask 0, which AutoCircuit
  documents as the fast form of its own EAP.
- `eap_ig` is the same function integrated over the masks (of all edges at once) at five values. It is not the
  path of EAP-IG through the inputs; it is AutoCircuit's nearest, at the same number of gradients.
- `half` and `best` are one patched forward: masks set and replacements computed before.
- `acdc` calls `acdc_prune_scores` at one threshold on a sample of edges, as many from each layer of
  receivers, and times each decision. It starts a forward at the receiver's block, so a layer's mean times its
  number of edges, summed over the layers, is the whole search; the row is estimated. What a decision costs
  does not depend on its outcome.
- AutoCircuit has no exact effect of every single edge, so there is no row `exact`.

`--repaired` replaces one line of TransformerLens 2.18, which takes most of the time of a forward: what each
head writes is there `(z * w).sum(-2)`, a product of every activation with every weight, [batch, position,
head, d_head, d_model], held in memory and summed. The repaired line is the same sum as one matrix product per
head, an einsum.
"""

from __future__ import annotations

import argparse
import inspect
import random
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import fmean, median
from typing import Any
from unittest.mock import patch

import torch
from measure import (
    Prompts,
    Work,
    hugging_face,
    main,
    parser,
    peak_gigabytes,
    peak_in_child,
    refuse_if_different,
    report,
    times,
)

# This file has the name of what it measures, which it would import in its stead.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

IG_POINTS = 5
ROWS = ("eap", "eap_ig", "half", "best", "acdc")


def repair() -> None:
    """Replace the slow line in TransformerLens's attention; stop where it is not there exactly once."""
    module = import_module("transformer_lens.components.abstract_attention")
    slow, fast = "(z * w).sum(-2)", 'torch.einsum("bphd,hdm->bphm", z[..., 0], w[0, 0])'
    source = textwrap.dedent(inspect.getsource(module.AbstractAttention.forward))
    if source.count(slow) != 1:
        raise SystemExit(f"nothing to repair: no single line {slow!r} in AbstractAttention.forward")
    namespace: dict[str, Any] = {}
    exec(compile(source.replace(slow, fast), module.__file__ or "", "exec"), vars(module), namespace)
    module.AbstractAttention.forward = namespace["forward"]


def hooked_transformer(hf: Any) -> Any:
    """TransformerLens's model of the same weights, unprocessed, with the hooks that AutoCircuit asks for."""
    lens = import_module("transformer_lens")
    convert = import_module("transformer_lens.pretrained.weight_conversions").convert_gpt2_weights
    config = lens.HookedTransformerConfig(
        n_layers=hf.config.n_layer, n_heads=hf.config.n_head, d_model=hf.config.n_embd, d_head=hf.config.n_embd // hf.config.n_head,
        d_mlp=hf.config.n_inner or 4 * hf.config.n_embd, n_ctx=hf.config.n_positions, d_vocab=hf.config.vocab_size,
        act_fn=hf.config.activation_function, normalization_type="LN", eps=hf.config.layer_norm_epsilon,
        use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True, device="cpu",
    )  # fmt: skip
    model = lens.HookedTransformer(config)
    model.load_and_process_state_dict(
        convert(hf, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
        refactor_factored_attn_matrices=False,
    )
    return model.eval().requires_grad_(False)  # as AutoCircuit's own loader leaves it


def their_name(edge: str) -> str:
    """Our name of an edge as AutoCircuit's: `a3.h5->a7.h2<q>` -> `A3.5->A7.2.Q`.

    >>> their_name("input->m0"), their_name("m3->logits")
    ('Resid Start->MLP 0', 'MLP 3->Resid End')
    """

    def node(name: str) -> str:
        if name in ("input", "logits"):
            return {"input": "Resid Start", "logits": "Resid End"}[name]
        head, _, letter = name.rstrip(">").partition("<")
        return (
            f"MLP {name[1:]}"
            if name[0] == "m"
            else f"A{head[1:].replace('h', '')}" + (letter and f".{letter.upper()}")
        )

    return "->".join(map(node, edge.split("->")))


class Stopwatch:
    """In place of AutoCircuit's progress bar over a loop: records each item
    with the seconds that the loop's body took.
    """

    def __init__(self, record: list[tuple[Any, float]], items: Iterable[Any]) -> None:
        self.record, self.items = record, items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            start = time.perf_counter()
            yield item
            self.record.append((item, time.perf_counter() - start))

    def set_description_str(self, *_: Any, **__: Any) -> None:
        """Show nothing."""


@dataclass(frozen=True)
class Peer:
    """AutoCircuit's model and loader, and what is timed on them."""

    model: Any
    loader: Any
    prompts: Prompts
    replacements: Any  # [sources, N, T, d_model]: every source on the corrupted prompts

    @classmethod
    def load(cls, hf: Any, prompts: Prompts) -> Peer:
        """Wrap the model, after it has been proved to be Hugging Face's."""
        hooked = hooked_transformer(hf)
        with torch.no_grad():
            refuse_if_different(hooked(prompts.clean[:2]), hf(prompts.clean[:2]).logits)
        wrap = import_module("auto_circuit.utils.graph_utils").patchable_model
        model = wrap(
            hooked,
            factorized=True,
            slice_output="last_seq",
            seq_len=None,
            separate_qkv=True,
            device=torch.device("cpu"),
        )
        data = import_module("auto_circuit.data")
        pairs = data.PromptDataset(
            prompts.clean, prompts.corrupted, prompts.correct[:, None], prompts.incorrect[:, None]
        )
        loader = data.PromptDataLoader(
            pairs, seq_len=prompts.clean.shape[1], diverge_idx=0, batch_size=len(prompts.clean)
        )
        ablations = import_module("auto_circuit.utils.ablation_activations").src_ablations
        return cls(model, loader, prompts, ablations(model, prompts.corrupted))

    def work(self, row: str) -> Work:
        """What a row runs once."""
        if row in self.prompts.circuits:
            return self.circuit_logits({their_name(edge) for edge in self.prompts.circuits[row]})
        one_each = list({layer_of(edge): edge for edge in self.model.edges}.values())
        return {
            "eap": lambda: self.gradients(mask_val=0.0),
            "eap_ig": lambda: self.gradients(integrated_grad_samples=IG_POINTS - 1),  # both ends count
            "acdc": lambda: self.acdc(one_each),
        }[row]

    def gradients(self, **points: Any) -> dict[str, torch.Tensor]:
        """Every receiver's scores: the gradient of the logit difference with respect to the masks."""
        score = import_module("auto_circuit.prune_algos.mask_gradient").mask_gradient_prune_scores
        return score(
            self.model, self.loader, None, grad_function="logit", answer_function="avg_diff", **points
        )

    def circuit_logits(self, edges: set[str]) -> Work:
        """A function that gives [N, vocabulary], every edge but these replaced."""
        patch_mode = import_module("auto_circuit.utils.graph_utils").patch_mode
        masks = {module: 1 - kept for module, kept in self.model.circuit_prune_scores(edges).items()}

        @torch.inference_mode()
        def logits() -> torch.Tensor:
            for module, mask in masks.items():
                self.model.patch_masks[module].data.copy_(mask)  # its searches write into the masks in place
            with patch_mode(self.model, self.replacements):
                return self.model(self.prompts.clean)[self.model.out_slice]

        return logits

    def acdc(self, edges: list[Any], threshold: float = 1e-3) -> list[tuple[Any, float]]:
        """(edge, seconds) of every decision of a search, in its
        order, where only these edges are asked about.
        """
        module, record = import_module("auto_circuit.prune_algos.ACDC"), list[tuple[Any, float]]()
        with (
            patch.object(module, "tqdm", partial(Stopwatch, record)),
            patch.object(self.model, "edges", edges),
        ):
            module.acdc_prune_scores(self.model, self.loader, None, tao_exps=[0], tao_bases=[threshold])
        return record[:-1]  # the last is the loop over the thresholds

    def acdc_estimate(self, decisions: int) -> dict[str, Any]:
        """A whole search from as many decisions at every layer of receivers."""
        layers: list[list[Any]] = [[] for _ in range(self.model.cfg.n_layers)]
        for edge in sorted(self.model.edges, key=lambda edge: edge.name):
            layers[layer_of(edge)].append(edge)
        draw, each = random.Random(0), -(-decisions // len(layers))
        start = time.perf_counter()
        record = self.acdc([edge for edges in layers for edge in draw.sample(edges, min(each, len(edges)))])
        preparing = time.perf_counter() - start - sum(seconds for _, seconds in record)
        per_layer = [
            fmean(seconds for edge, seconds in record if layer_of(edge) == layer)
            for layer in range(len(layers))
        ]
        whole = preparing + sum(mean * len(edges) for mean, edges in zip(per_layer, layers, strict=True))
        return {"seconds": whole, "estimated": True, "decisions": len(record), "per_layer": per_layer}


def layer_of(edge: Any) -> int:
    """The block at which ACDC starts the forward for an edge."""
    return int(edge.dest.module_name.split(".")[1])


def measure(arguments: argparse.Namespace) -> Any:
    """The whole report, or the memory of one row where this is a child process."""
    if arguments.repaired:
        repair()
    prompts = Prompts.read(arguments.folder)
    hf = hugging_face(arguments.folder)
    peer = Peer.load(hf, prompts)
    if arguments.memory:
        del hf
        return peak_gigabytes(peer.work(arguments.memory))

    @torch.no_grad()
    def forward() -> Any:
        return hf(prompts.clean).logits

    works = {row: peer.work(row) for row in ROWS[:-1]}
    spent = times({"F": forward} | works, arguments.repetitions)
    rows: dict[str, dict[str, Any]] = {row: {"seconds": median(spent[row])} for row in works}
    rows["eap_ig"]["gradients"] = IG_POINTS
    for row in prompts.circuits:
        rows[row]["logit_diff"] = float(prompts.logit_diff(works[row]()))
    rows["acdc"] = peer.acdc_estimate(arguments.decisions)
    spent["F"] += times({"F": forward}, arguments.repetitions)["F"]
    for row in ROWS:
        rows[row]["gigabytes"] = peak_in_child(row)
    packages = {
        "version": "auto-circuit",
        "transformer_lens": "transformer-lens",
        "transformers": "transformers",
    }
    return report("AutoCircuit", arguments, median(spent["F"]), rows, packages, repaired=arguments.repaired)


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument(
        "--decisions", type=int, default=204, help="ACDC decisions to time, spread evenly over the layers"
    )
    options.add_argument("--repaired", action="store_true", help="with TransformerLens's slow line replaced")
    main(options.parse_args(), measure)
