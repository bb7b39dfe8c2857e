"""Train the bundled model `toy`: a small GPT-2 that learns the shipped tasks as a language model, among ordinary sentences.

Run `python benchmarks/train_toy.py`; it writes the model's folder and prints the table of its figures on held-out prompts (toy_text.py).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from toy_text import EARLY, END, HELD_OUT, MIXTURE, ROOT, TASKS, UNKNOWN, Prompt, World, document, held_out_prompts, load_world
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

FOLDER = ROOT / "circuitdiscovery" / "models" / "toy"
LOG = logging.getLogger("train_toy")

SEED = 0
STEPS = 12_000
EARLY_STEPS = 1_500
BATCH = 32
CONTEXT = 64  # positions: the longest training documents fill them
RATE = 2e-3
DECAY = 0.1  # on matrices: unused paths fade, which makes the circuits sparse
BARS = {"ioi accuracy": 0.99, "ioi logit difference": 3.0, "greater_than prob_diff": 0.9}
BARS |= {"subject_verb_agreement accuracy": 0.99, "gendered_pronoun accuracy": 0.99, "induction accuracy": 0.9}


# --- tokenizer and model --------------------------------------------------------------------------------------------------------------


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Word-level tokens that carry the space before them, so that decoding gives the text back; a first word gets a space."""
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(world.tokens)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Replace(Regex(r"\A(?=[A-Za-z])"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+| ?\d{1,2}| ?[^\sA-Za-z\d]|\s+"), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        eos_token=END,  # no bos_token: what has one prepends it in places (TransformerBridge does), and training knew none
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


def batches(world: World, tokenizer: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[list[torch.Tensor]]:
    """Batches of BATCH documents without end, each as two tensors of ids [documents, T]: the shorter ones, then the few long ones.

    -100 stands after a document's end. Every batch mixes all kinds of documents; without the split most of it would be padding.
    """
    for step in itertools.count():
        mixture = EARLY if step < EARLY_STEPS else MIXTURE
        ids = sorted((tokenizer(document(world, rng, mixture), truncation=True).input_ids for _ in range(BATCH)), key=len)
        split = BATCH * 7 // 8
        yield [torch.tensor([row + [-100] * (len(part[-1]) - len(row)) for row in part]) for part in (ids[:split], ids[split:])]


def next_token_loss(model: GPT2LMHeadModel, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean over every token of the batch that has one before it."""
    total = sum(((part[:, 1:] >= 0).sum() for part in parts), torch.tensor(0))
    losses = []
    for part in parts:
        logits = model(part.clamp(min=0)).logits[:, :-1]  # [documents, T - 1, vocabulary]
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return torch.stack(losses).sum() / total


def optimizer_of(model: GPT2LMHeadModel) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), fused=True)


def rate(step: int, steps: int) -> float:
    """A share of RATE: linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / 100) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def train(world: World, tokenizer: PreTrainedTokenizerFast, folder: Path, *, steps: int, seed: int) -> GPT2LMHeadModel:
    """Next-token loss on every token. Saves the model whenever an evaluation reaches all bars."""
    torch.manual_seed(seed)
    model = build_model(len(tokenizer))
    optimizer = optimizer_of(model)
    stream = batches(world, tokenizer, random.Random(seed))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step, steps)
        loss = next_token_loss(model, next(stream))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            figures = measure(model, tokenizer, world, count=240, seed=seed + 1)
            LOG.info("step %d, loss %.3f, %s", step + 1, loss.item(), {name: round(value, 4) for name, value in figures.items()})
            if all(figures[name] >= bar for name, bar in BARS.items()):
                model.save_pretrained(folder)
    return model


# --- figures --------------------------------------------------------------------------------------------------------------------------


def last_logits(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> torch.Tensor:
    """The logits [prompts, vocabulary] after each prompt; prompts of one length run together, so that nothing is padded."""
    ids = [tokenizer(prompt.text).input_ids for prompt in prompts]
    logits = torch.zeros(len(ids), model.config.vocab_size)
    for length in {len(row) for row in ids}:
        rows = [index for index, row in enumerate(ids) if len(row) == length]
        with torch.no_grad():
            logits[rows] = model(torch.tensor([ids[row] for row in rows])).logits[:, -1]
    return logits


def margins(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Prompt]) -> torch.Tensor:
    """[prompts, 2]: the best correct logit minus the best incorrect one, and the same difference of summed probabilities."""
    logits = last_logits(model, tokenizer, prompts)
    found = []
    for prompt, row in zip(prompts, logits, strict=True):
        right, wrong = (tokenizer.convert_tokens_to_ids(list(answers)) for answers in (prompt.correct, prompt.incorrect))
        chance = row.softmax(-1)
        found.append(torch.stack([row[right].max() - row[wrong].max(), chance[right].sum() - chance[wrong].sum()]))
    return torch.stack(found)


def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, world: World, *, count: int, seed: int) -> dict[str, float]:
    """Every figure on `count` fresh prompts of each task, whose pairs of words never met in training."""
    figures: dict[str, float] = {}
    for task in TASKS:
        margin, chance = margins(model, tokenizer, held_out_prompts(world, task, random.Random(f"{seed} {task}"), count)).T
        if task == "greater_than":
            figures["greater_than prob_diff"] = chance.mean().item()
        else:
            figures[f"{task} accuracy"] = (margin > 0).float().mean().item()
            figures[f"{task} logit difference"] = margin.mean().item()
    return figures


def table(figures: Mapping[str, float]) -> str:
    rows = [f"| {name} | {value:.3f} | {f'>= {BARS[name]}' if name in BARS else ''} |" for name, value in figures.items()]
    return "\n".join(["| held-out prompts | figure | bar |", "| --- | --- | --- |", *rows])


def card(figures: Mapping[str, float], *, parameters: int, world: World, steps: int, seed: int) -> str:
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
- Training: seed {seed}, {steps:,} steps of {BATCH} documents, AdamW (rate {RATE:g}, weight decay {DECAY:g}), one thread.
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
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    world = load_world()
    tokenizer = build_tokenizer(world)
    tokenizer.save_pretrained(options.out)
    model = train(world, tokenizer, options.out, steps=options.steps, seed=options.seed)
    figures = measure(model, tokenizer, world, count=1000, seed=options.seed + 2)
    model.save_pretrained(options.out)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    text = card(figures, parameters=parameters, world=world, steps=options.steps, seed=options.seed)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
