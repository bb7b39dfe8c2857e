"""Train the semi-synthetic models: small GPT-2s in which a prescribed set of
edges does the work, and no other edge any.

Run `python benchmarks/train_semisynthetic.py [NAME ...]`; it writes the models' folders, and prints and
writes the table of their figures. The recipe is strict interchange-intervention training (Gupta et al. 2024,
InterpBench, arXiv 2407.14494), on edges:

1. A batch of prompts runs as it is. Every prompt's source is the one before it in the batch.
2. It runs again, and this time some edges carry what their sources wrote on the source prompt: of the
   prescribed ones none, one, or all that leave a variable's node; of the others none, a random share, or all.
3. Losses: the answer of the first run (behaviour); the answer of the second, which the causal model gives for
   the prescribed edges that were moved (interchange), and which where none was is the prompt's own (strict);
   and where none was, the squared difference of the two runs' logits, so that the other edges carry nothing
   at all rather than too little to change an answer.

The forward is written out edge by edge and knows nothing of the package's own,
which the tests hold these models against.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from circuitdiscovery.benchmark.problems.semisynthetic import (
    BOS,
    CAUSAL_MODELS,
    FIRST,
    NAMES,
    SECOND,
    VOCABULARY,
    CausalModel,
    draw_pairs,
    folder,
)
from circuitdiscovery.graph.graph import Graph

LOG = logging.getLogger("train_semisynthetic")

SEED = 0
STEPS = 1_500
BATCH = 64  # prompts; each is run twice
RATE = 2e-3  # at its highest: a linear warm-up, then a cosine to zero
DECAY = 0.1  # on matrices
# of the labels: no model gets surer than this, so that its logits stay where an edge that moves them shows
SMOOTHING = 0.05
STRICT_WEIGHT = 0.1  # of the squared difference of logits, beside cross-entropies
N_HEADS, D_MODEL, D_MLP = 4, 64, 64
MEASURED = 2_000  # pairs


def build_network(causal: CausalModel) -> GPT2LMHeadModel:
    """An untrained GPT-2 for a causal model's prompts."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=causal.draw(1, Generator()).shape[1],
        n_embd=D_MODEL,
        n_layer=causal.n_layers,
        n_head=N_HEADS,
        n_inner=D_MLP,
        activation_function="gelu_new",
        initializer_range=0.08,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,  # an answer is no symbol of the prompt
        bos_token_id=BOS,
        eos_token_id=BOS,
    )
    return GPT2LMHeadModel(config)


# --- the forward, edge by edge
# -------------------------------------------------------------------------------------------------------- N
# prompts, T positions, D d_model, H heads, K d_head, S sources, R receivers.


@dataclass(frozen=True)
class Run:
    """What every source wrote, [N, S, T, D], and the logits at the last position, [N, vocabulary]."""

    written: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Carried:
    """For every edge whether it carries its source's own output (1) or another run's
    (0): [N, S, R] float; that run's outputs.
    """

    own: Tensor
    other: Tensor  # [N, S, T, D]


def received(written: Sequence[Tensor], carried: Carried | None, columns: Sequence[int]) -> Tensor:
    """What receivers read of the sources before them, [N, len(columns), T, D]; [N, 1, T, D]
    where nothing is moved: all read the same.
    """
    own = torch.stack(tuple(written), dim=1)  # [N, s, T, D]
    if carried is None:
        return own.sum(dim=1, keepdim=True)
    weight = carried.own[:, : len(written), columns]  # [N, s, r]
    other = carried.other[:, : len(written)]  # [N, s, T, D]
    return torch.einsum("nsr,nstd->nrtd", weight, own - other) + other.sum(dim=1, keepdim=True)


def heads(attention: Any, reads: Sequence[Tensor]) -> Tensor:
    """What each head writes, [N, H, T, D], from the normalised streams that its
    q, k and v read, [N, H or 1, T, D] each.
    """
    projected: list[Tensor] = []
    for i, x in enumerate(reads):
        weight = attention.c_attn.weight.unflatten(1, (3, N_HEADS, -1))[:, i].transpose(0, 1)  # [H, D, K]
        bias = attention.c_attn.bias.unflatten(0, (3, N_HEADS, 1, -1))[i]  # [H, 1, K]
        projected.append(x @ weight + bias)  # [N, H, T, K]
    # [N, H, T, K]
    z = F.scaled_dot_product_attention(projected[0], projected[1], projected[2], is_causal=True)
    # [H, K, D]; without b_O, which belongs to no head
    return z @ attention.c_proj.weight.unflatten(0, (N_HEADS, -1))


def forward(network: GPT2LMHeadModel, graph: Graph, tokens: Tensor, carried: Carried | None = None) -> Run:
    """Run prompts [N, T]; every norm is recomputed on what its receiver reads."""
    body: Any = network.transformer
    written = [body.wte(tokens) + body.wpe(torch.arange(tokens.shape[1]))]  # S times [N, T, D]
    constant = torch.zeros(D_MODEL)  # the b_O so far
    for layer, block in enumerate(body.h):
        columns = [column for letter in "qkv" for column in graph.columns(layer, letter)]
        reads = block.ln_1(received(written, carried, columns) + constant)  # [N, 3 H or 1, T, D]
        written += heads(block.attn, [reads] * 3 if carried is None else reads.chunk(3, dim=1)).unbind(dim=1)
        constant = constant + block.attn.c_proj.bias
        stream = received(written, carried, graph.columns(layer, "m").tolist())[:, 0] + constant  # [N, T, D]
        written.append(block.mlp(block.ln_2(stream)))
    # [N, D]
    stream = (
        received([x[:, -1:] for x in written], _last(carried), [len(graph.receivers) - 1])[:, 0, 0] + constant
    )
    return Run(torch.stack(written, dim=1), network.lm_head(body.ln_f(stream)))


def _last(carried: Carried | None) -> Carried | None:
    return None if carried is None else Carried(carried.own, carried.other[:, :, -1:])


# --- interventions
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aligned:
    """A causal model and the graph of its network."""

    causal: CausalModel
    graph: Graph

    @classmethod
    def of(cls, causal: CausalModel) -> Aligned:
        return cls(causal, Graph(causal.n_layers, N_HEADS, N_HEADS))

    @property
    def true(self) -> Tensor:
        """[S, R] bool: the prescribed edges."""
        return torch.from_numpy(self.graph.mask(self.causal.edges))

    def single(self, edge: str) -> Tensor:
        """[S, R] bool: one edge."""
        return torch.from_numpy(self.graph.mask([edge]))

    def node(self, name: str) -> Tensor:
        """[S, R] bool: all edges that leave a node, prescribed or not: what replacing its output moves."""
        rows = torch.arange(len(self.graph.sources)) == self.graph.source_index[name]
        return torch.from_numpy(self.graph.allowed.copy()) & rows[:, None]

    def moved(self, mask: Tensor) -> Tensor:
        """Of [N, S, R] moved edges the prescribed ones, [N, edges], as the causal model names them."""
        rows, columns = zip(*map(self.graph.index, self.causal.edges), strict=True)
        return mask[:, rows, columns]

    def draw(self, n: int, generator: Generator) -> Tensor:
        """[n, S, R] bool: moved edges for n prompts (step 2 above)."""
        singles = [self.single(edge) for edge in self.causal.edges]
        nodes = [self.node(name) for name in self.causal.variables.values()]
        menu = torch.stack([torch.zeros_like(self.true), *singles, *nodes])  # [1 + edges + variables, S, R]
        weights = torch.tensor([0.4, *[0.4 / len(singles)] * len(singles), *[0.2 / len(nodes)] * len(nodes)])
        chosen = menu[torch.multinomial(weights, n, replacement=True, generator=generator)]
        kind, share = torch.rand(2, n, generator=generator)
        share = share.masked_fill(kind < 0.2, 0.0).masked_fill(kind > 0.5, 1.0)  # of all other edges
        others = torch.rand(chosen.shape, generator=generator) < share[:, None, None]
        return chosen | (others & ~self.true)


# --- training
# -------------------------------------------------------------------------------------------------------------------------


def loss_of(network: GPT2LMHeadModel, aligned: Aligned, prompts: Tensor, mask: Tensor) -> Tensor:
    """The sum of all losses (step 3) on prompts [N, T] with the moved edges [N, S, R]."""
    causal, moved = aligned.causal, aligned.moved(mask)
    plain = forward(network, aligned.graph, prompts)
    changed = forward(network, aligned.graph, prompts, Carried((~mask).float(), plain.written.roll(1, 0)))
    behaviour = F.cross_entropy(plain.logits, causal.answers(prompts), label_smoothing=SMOOTHING)
    wanted = causal.answers(prompts, prompts.roll(1, 0), moved)
    interchange = F.cross_entropy(changed.logits, wanted, label_smoothing=SMOOTHING)
    still = ~moved.any(dim=1)
    strict = (changed.logits - plain.logits)[still].square().mean()
    return behaviour + interchange + STRICT_WEIGHT * strict


def share_of_rate(step: int) -> float:
    """A linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1.0 + math.cos(math.pi * step / STEPS))


def train(
    causal: CausalModel, *, seed: int = SEED, steps: int = STEPS
) -> tuple[GPT2LMHeadModel, list[float]]:
    """A trained network and every step's loss; with fewer steps, the beginning of the same training."""
    torch.manual_seed(seed)
    generator = Generator().manual_seed(seed)
    network, aligned = build_network(causal).train(), Aligned.of(causal)
    matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    losses: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * share_of_rate(step)
        loss = loss_of(network, aligned, causal.draw(BATCH, generator), aligned.draw(BATCH, generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 250 == 0:
            LOG.info("%s, step %d, loss %.4f", causal.name, step + 1, sum(losses[-250:]) / 250)
    return network.eval(), losses


# --- figures
# --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of one network, on fresh pairs whose answers differ.

    Args:
        accuracy: the share of prompts answered.
        interchange: per variable the share answered as the causal model does where
            its node's output is the other prompt's.
        edges: the same per prescribed edge where that edge alone is moved.
        strict: the share answered where every edge that is not prescribed is moved.
        without: per prescribed edge the share answered, as if nothing were moved, where that edge alone is.
        moved: the most that a logit changes where every edge that is not prescribed is moved.
    """

    accuracy: float
    interchange: Mapping[str, float]
    edges: Mapping[str, float]
    strict: float
    without: Mapping[str, float]
    moved: float


@torch.no_grad()
def measure(network: GPT2LMHeadModel, causal: CausalModel, *, seed: int, pairs: int = MEASURED) -> Figures:
    """All figures on pairs drawn by the seed."""
    aligned = Aligned.of(causal)
    base, source = draw_pairs(causal, pairs, Generator().manual_seed(seed))
    plain, written = forward(network, aligned.graph, base), forward(network, aligned.graph, source).written
    own = causal.answers(base)

    def logits(mask: Tensor) -> Tensor:
        return forward(
            network, aligned.graph, base, Carried((~mask).float().expand(pairs, -1, -1), written)
        ).logits

    def as_told(mask: Tensor) -> float:
        return share(logits(mask), causal.answers(base, source, aligned.moved(mask.expand(pairs, -1, -1))))

    strict = logits(~aligned.true)
    return Figures(
        accuracy=share(plain.logits, own),
        interchange={name: as_told(aligned.node(node)) for name, node in causal.variables.items()},
        edges={edge: as_told(aligned.single(edge)) for edge in causal.edges},
        strict=share(strict, own),
        without={edge: share(logits(aligned.single(edge)), own) for edge in causal.edges},
        moved=(strict - plain.logits).abs().max().item(),
    )


def share(logits: Tensor, answers: Tensor) -> float:
    """How many of the answers [N] are what logits [N, vocabulary] say."""
    return (logits.argmax(dim=1) == answers).float().mean().item()


def table(figures: Mapping[str, Figures]) -> str:
    """One row per network."""
    lines = [
        "| model | accuracy | interchange accuracy | strict | accuracy without a true edge | logit change |",
        "| --- " * 6 + "|",
    ]
    for name, f in figures.items():
        nodes = ", ".join(f"{variable} {value:.3f}" for variable, value in f.interchange.items())
        nodes += f"; single edges at least {min(f.edges.values()):.3f}"
        without = ", ".join(f"`{edge}` {value:.2f}" for edge, value in f.without.items())
        lines.append(f"| {name} | {f.accuracy:.4f} | {nodes} | {f.strict:.4f} | {without} | {f.moved:.2f} |")
    return "\n".join(lines)


def card(figures: Mapping[str, Figures], *, seed: int) -> str:
    """What the folder's README says."""
    rows = "\n".join(
        f"| {c.name} | {c.n_layers} | {', '.join(f'`{edge}`' for edge in c.edges)} |"
        for c in CAUSAL_MODELS.values()
    )
    return f"""# Semi-synthetic models

Small GPT-2s that were trained to a prescribed circuit: its edges do the work, and what all other edges carry makes no
difference. Their tasks and causal models are in `circuitdiscovery/benchmark/problems/semisynthetic.py`.

| model | layers | circuit |
| --- | --- | --- |
{rows}

- `induction`: `BOS k v k v k v k v k`: the value that stood after the key that is asked for. All four keys stand in every prompt.
- `fraction`: `BOS` and seven symbols: how many of them are marked (0-1, 2-3, 4-5, 6-7).
- `gate`: `BOS` and seven symbols: the exclusive or of the classes (two bits) of the symbols at positions {FIRST} and {SECOND}.
- Architecture: `GPT2LMHeadModel`, {N_HEADS} heads a layer, d_model {D_MODEL}, MLP {D_MLP}, {VOCABULARY} tokens, embeddings not tied,
  no dropout, no tokenizer, float32. The answer is read at the last position.
- Recipe: strict interchange-intervention training (Gupta et al. 2024, InterpBench, arXiv 2407.14494), with interventions on
  edges instead of nodes; the script's first lines say how. Seed {seed}, {STEPS:,} steps of {BATCH} prompts, AdamW, rate {RATE:g},
  labels smoothed by {SMOOTHING:g}, one thread.
- Command: `python benchmarks/train_semisynthetic.py`

{table(figures)}

On {MEASURED:,} fresh pairs of prompts whose answers differ. Interchange accuracy: the output of the variable's node is that on the
other prompt, and the network answers what the causal model does; so too where a single prescribed edge is moved. Strict: the
answer is right where every edge outside the circuit carries what it does on the other prompt; the last column is the most that
a logit changes then. Without a true edge: it alone carries what it does on the other prompt.

Training draws from all prompts, so a test prompt may have been seen; `induction` has about 1.1 million, the others over 35 million.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which to train, of {', '.join(NAMES)}; by default all"
    )
    parser.add_argument("--out", type=Path, help="a folder other than the package's")
    parser.add_argument("--measure", action="store_true", help="train none, measure what is there")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    out = options.out or folder("")
    for name in () if options.measure else options.names or NAMES:
        network, _ = train(CAUSAL_MODELS[name], seed=options.seed)
        network.save_pretrained(out / name)
    figures: dict[str, Figures] = {}
    for name in (name for name in NAMES if (out / name).is_dir()):
        network: Any = GPT2LMHeadModel.from_pretrained(out / name)
        figures[name] = measure(network.eval(), CAUSAL_MODELS[name], seed=options.seed + 1)
    (out / "README.md").write_text(card(figures, seed=options.seed), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
