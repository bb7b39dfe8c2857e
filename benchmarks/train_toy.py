"""Train the bundled model `toy`: a small GPT-2 that learns the shipped tasks as a
language model, among ordinary sentences.

Run `python benchmarks/train_toy.py`; it writes the model's folder and prints the table of its
figures on held-out prompts (toy_text.py). `--seed N --out FOLDER` trains it from another start on other
documents; `--checkpoints` also keeps the model along the way, in FOLDER/step-N.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy_text import (
    EARLY,
    END,
    HELD_OUT,
    MIXTURE,
    ROOT,
    TASKS,
    UNKNOWN,
    Prompt,
    World,
    document,
    held_out_prompts,
    later,
    load_world,
)
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

FOLDER = ROOT / "circuitdiscovery" / "models" / "toy"
LOG = logging.getLogger("train_toy")


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own."""

    steps: int
    rate: float  # at its highest: a linear warm-up, then a cosine to zero
    decay: float  # on the blocks' matrices: unused paths fade, which makes the circuits sparse
    mixture: Mapping[str, int]
    slip: float | None = None  # share of IOI sentences that name the giver again


# The first phase learns; the others thin out what is not needed, and keep the model from being surer than it
# must be: where a probability is saturated, an edge that moves the logits leaves no trace in it.
PHASES = (
    Phase(12_000, 2e-3, 0.1, MIXTURE),
    Phase(2_500, 1e-3, 1.0, later(24, 34, 18), slip=0.025),
    Phase(3_500, 1e-3, 1.0, later(24, 36, 20), slip=0.0),
    Phase(2_000, 8e-4, 1.0, later(22, 40, 20), slip=0.035),
    Phase(2_500, 6e-4, 1.0, later(22, 50, 20), slip=0.03),
)
SEED = 0
STEPS = sum(phase.steps for phase in PHASES)
KEPT = (0, 250, 500, 750, 1_000, 1_250, 1_500, 2_000, 2_500, 3_000, 4_000, 6_000, 8_000, 10_000, 12_000)
KEPT += (13_250, 14_500, 16_250, 18_000, 20_000)  # steps after which --checkpoints keeps the model
EARLY_STEPS = 1_500
BATCH = 32
CONTEXT = 64  # positions: the longest training documents fill them
BARS = {"ioi accuracy": 0.99, "ioi logit difference": 3.0, "greater_than prob_diff": 0.9}
BARS |= {
    "subject_verb_agreement accuracy": 0.99,
    "gendered_pronoun accuracy": 0.99,
    "induction accuracy": 0.9,
}


# --- tokenizer and model
# --------------------------------------------------------------------------------------------------------------


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Word-level tokens that carry the space before them, so that decoding gives
    the text back; a first word gets a space.
    """
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(world.tokens)}, unk_token=UNKNOWN)
    )
    tokenizer.normalizer = normalizers.Replace(Regex(r"\A(?=[A-Za-z])"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]|\s+"), "isolated"
    )
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        # no bos_token: what has one prepends it in places (TransformerBridge does), and training knew none
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(vocabulary: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=4,
        n_head=4,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new in one kernel
        initializer_range=0.06,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return GPT2LMHeadModel(config)


def batches(
    world: World, tokenizer: PreTrainedTokenizerFast, rng: random.Random, phase: Phase = PHASES[0]
) -> Iterator[list[torch.Tensor]]:
    """Batches of BATCH documents without end, each as two tensors of ids [documents, T]:
    the shorter ones, then the few long ones.

    -100 stands after a document's end. Every batch mixes all kinds of documents;
    without the split most of it would be padding.
    """
    for step in itertools.count():
        mixture = EARLY if phase is PHASES[0] and step < EARLY_STEPS else phase.mixture
        documents = [document(world, rng, mixture, phase.slip) for _ in range(BATCH)]
        ids = sorted((tokenizer(text, truncation=True).input_ids for text in documents), key=len)
        split = BATCH * 7 // 8
        yield [
            torch.tensor([row + [-100] * (len(part[-1]) - len(row)) for row in part])
            for part in (ids[:split], ids[split:])
        ]


def next_token_loss(model: GPT2LMHeadModel, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over every token of the batch that has one before it."""
    total = sum(((part[:, 1:] >= 0).sum() for part in parts), torch.tensor(0))
    losses = []
    for part in parts:
        logits = model(part.clamp(min=0)).logits[:, :-1]  # [documents, T - 1, vocabulary]
        losses.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
        )
    return torch.stack(losses).sum() / total


def optimizer_of(model: GPT2LMHeadModel, phase: Phase) -> torch.optim.AdamW:
    named = dict(model.named_parameters())
    blocks = [parameter for name, parameter in named.items() if parameter.ndim >= 2 and ".h." in name]
    embeddings = [parameter for name, parameter in named.items() if parameter.ndim >= 2 and ".h." not in name]
    vectors = [parameter for parameter in named.values() if parameter.ndim < 2]
    groups = [{"params": blocks, "weight_decay": phase.decay}, {"params": embeddings, "weight_decay": 0.1}]
    groups.append({"params": vectors, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=phase.rate, betas=(0.9, 0.98), fused=True)


def share_of_rate(step: int, steps: int) -> float:
    """A linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def train(
    world: World,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    keep: Callable[[GPT2LMHeadModel, int], None] | None = None,
) -> GPT2LMHeadModel:
    """All phases, with the next-token loss on every token; `keep` gets the model after each step of KEPT."""
    torch.manual_seed(seed)
    model = build_model(len(tokenizer))
    done = 0
    if keep is not None:
        keep(model, done)
    for index, phase in enumerate(PHASES):
        stream = batches(world, tokenizer, random.Random(f"{seed + index}" if index else seed), phase)
        optimizer = optimizer_of(model, phase)
        for step in range(phase.steps):
            loss = update(model, optimizer, next(stream), phase.rate * share_of_rate(step, phase.steps))
            done += 1
            if keep is not None and done in KEPT:
                keep(model, done)
            if (step + 1) % 250 == 0:
                figures = measure(model, tokenizer, world, count=240, seed=seed + 1)
                LOG.info(
                    "phase %d, step %d, loss %.3f, %s",
                    index,
                    step + 1,
                    loss,
                    {name: round(value, 4) for name, value in figures.items()},
                )
    return model


def update(
    model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, parts: Sequence[torch.Tensor], rate: float
) -> float:
    """One step; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = next_token_loss(model, parts)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


# --- figures
# --------------------------------------------------------------------------------------------------------------------------


def last_logits(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]
) -> torch.Tensor:
    """The logits [prompts, vocabulary] after each prompt; prompts of one length
    run together, so that nothing is padded.
    """
    ids = [tokenizer(prompt.text).input_ids for prompt in prompts]
    logits = torch.zeros(len(ids), model.config.vocab_size)
    for length in {len(row) for row in ids}:
        rows = [index for index, row in enumerate(ids) if len(row) == length]
        with torch.no_grad():
            logits[rows] = model(torch.tensor([ids[row] for row in rows])).logits[:, -1]
    return logits


def margins(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]
) -> torch.Tensor:
    """[prompts, 2]: the best correct logit minus the best incorrect one, and the
    same difference of summed probabilities.
    """
    logits = last_logits(model, tokenizer, prompts)
    found = []
    for prompt, row in zip(prompts, logits, strict=True):
        right, wrong = (
            tokenizer.convert_tokens_to_ids(list(answers)) for answers in (prompt.correct, prompt.incorrect)
        )
        chance = row.softmax(-1)
        found.append(
            torch.stack([row[right].max() - row[wrong].max(), chance[right].sum() - chance[wrong].sum()])
        )
    return torch.stack(found)


def measure(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, world: World, *, count: int, seed: int
) -> dict[str, float]:
    """Every figure on `count` fresh prompts of each task, whose pairs of words never met in training."""
    figures: dict[str, float] = {}
    for task in TASKS:
        margin, chance = margins(
            model, tokenizer, held_out_prompts(world, task, random.Random(f"{seed} {task}"), count)
        ).T
        if task == "greater_than":
            figures["greater_than prob_diff"] = chance.mean().item()
        else:
            figures[f"{task} accuracy"] = (margin > 0).float().mean().item()
            figures[f"{task} logit difference"] = margin.mean().item()
    return figures


def table(figures: Mapping[str, float]) -> str:
    rows = [
        f"| {name} | {value:.3f} | {f'>= {BARS[name]}' if name in BARS else ''} |"
        for name, value in figures.items()
    ]
    return "\n".join(["| held-out prompts | figure | bar |", "| --- | --- | --- |", *rows])


def card(figures: Mapping[str, float], *, parameters: int, world: World, seed: int) -> str:
    """The model card."""
    mixture = ", ".join(f"{kind} {share}%" for kind, share in MIXTURE.items())
    return f"""# toy

A small GPT-2 that knows the shipped tasks, so that the package can be tried without a network.

- Architecture: `GPT2LMHeadModel`, 4 layers of 4 heads, d_model 128, MLP 512, {CONTEXT} positions, {len(world.tokens)} tokens,
  tied embeddings, no dropout: {parameters:,} parameters, float32.
- Tokenizer: word-level, case-sensitive. A token carries the space before it; a text's first word counts as one after a space.
  Punctuation stands alone. Numbers are read two digits at a time: 1732 is ` 17`, `32`. No beginning-of-sequence token.
  Unknown words are `{UNKNOWN}`.
- Data: generated English-like documents of one or more sentences, from the words and templates of `tasks/*.toml`, and
  ordinary sentences with the same words (first sentences: {mixture};
  in the first {EARLY_STEPS:,} steps only IOI, repeated sequences and lists of years).
  In 15% of the IOI sentences the giver is a third person. Loss: the next token, on every token.
- Held out: one pair in {HELD_OUT} of two names, of an event and a year's last two digits, of a noun and a place, of an adjective
  and a name never stands in one training document. Random sequences are always new.
- Training: seed {seed}, {STEPS:,} steps of {BATCH} documents in {len(PHASES)} phases (PHASES in the script), AdamW, one thread. The
  later phases have a weight decay of {PHASES[-1].decay:g} on the blocks' matrices, which thins the circuits out; in the last,
  {PHASES[-1].slip:.1%} of the IOI sentences name the giver again, so that the model is not surer than it must be.
- Command: `python benchmarks/train_toy.py`

{table(figures)}

1,000 prompts of each task, each with a pair of words that was held out. Accuracy: the best correct logit is above the best
incorrect one; for `induction`, above those of all other tokens of the sequence. `prob_diff`: the summed probability of the
years above minus that of the years up to the first.

It is made for looking inside. It knows {len(world.tokens)} tokens and nothing about the world.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--checkpoints", action="store_true", help="keep the model along the way, in step-N")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    world = load_world()
    tokenizer = build_tokenizer(world)
    tokenizer.save_pretrained(options.out)

    def keep(model: GPT2LMHeadModel, step: int) -> None:
        folder = options.out / f"step-{step}"
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)

    model = train(world, tokenizer, seed=options.seed, keep=keep if options.checkpoints else None)
    figures = measure(model, tokenizer, world, count=1000, seed=options.seed + 2)
    model.save_pretrained(options.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = card(figures, parameters=parameters, world=world, seed=options.seed)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
