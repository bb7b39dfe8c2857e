"""What makes a unit active: beside Hugging Face's own hooks, NumPy and models whose neurons are known."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch
from test_parts_planted import SUMS, sums
from test_run_sites import layers, seen
from tiny import Tiny

import circuitdiscovery as cd
from circuitdiscovery.benchmark.problems.programs import LOGIT
from circuitdiscovery.features import active
from circuitdiscovery.features.highest import BINS, Batch, Highest
from circuitdiscovery.features.scoring import correlation, prompt
from circuitdiscovery.features.snippets import Snippet, TopActivations

f = cd.features


def down(block: Any) -> Any:
    names = ("c_proj", "down_proj", "dense_4h_to_h")
    return next(getattr(block.mlp, name) for name in names if hasattr(block.mlp, name))


def spread(values: np.ndarray, top: int, window: int) -> list[tuple[int, int]]:
    """The places of the highest of [n, T] values, each further than `window` from a higher one; slow."""
    left, found = values.copy(), list[tuple[int, int]]()
    left[:, 0] = -np.inf
    while len(found) < top and left.max() > -np.inf:
        row, at = (int(each) for each in np.unravel_index(left.argmax(), left.shape))
        found.append((row, at))
        left[row, max(0, at - window) : at + window + 1] = -np.inf
    return found


@pytest.fixture(scope="module")
def agreement(toy: Any) -> Any:
    return cd.load_task("subject_verb_agreement", toy, examples=48)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    names = ("keys", "dogs", "cats", "books")
    return [f"The {a} near the {b} behind the {c} are small." for a in names for b in names for c in names]


# ------------------------------------------------------------------ activations


def test_snippets_are_where_hugging_faces_hooks_are_highest(tiny: Tiny) -> None:
    """Prompts of random tokens have no beginning in common but the first tokens."""
    tokens = tiny.prompts.clean
    neurons = seen_on(tiny.hf, down(layers(tiny.hf)[1]), tokens)  # [n, T, U]
    for window in (0, 2):
        found = f.top_activations(tiny.model, ["m1/n3", "m1/n5"], tokens, top=4, window=window)
        for unit, values in zip(found, (neurons[..., 3], neurons[..., 5]), strict=True):
            places = spread(values, 4, window)
            assert [(each.prompt, each.position) for each in unit.snippets] == places
            np.testing.assert_allclose(
                [each.activation for each in unit.snippets], [values[at] for at in places], atol=1e-5
            )
            assert unit.tokens == values[:, 1:].size
            assert unit.high == pytest.approx(values[:, 1:].max(), abs=1e-5)
            for each in (*unit.snippets, *unit.random):
                start = each.position - each.at
                own = values[each.prompt, start : start + len(each.tokens)].copy()
                own[: 1 - start if start < 1 else 0] = np.nan  # the first token does not count
                np.testing.assert_allclose(each.activations, own, atol=1e-5)
                assert len(each.tokens) <= 2 * window + 1 and each.tokens[each.at] == each.token


def seen_on(network: Any, module: Any, tokens: torch.Tensor) -> np.ndarray:
    import test_run_sites

    before, test_run_sites.TOKENS = test_run_sites.TOKENS, tokens
    try:
        return seen(network, module, before=True).double().numpy()
    finally:
        test_run_sites.TOKENS = before


def test_a_look_ups_neuron_is_active_at_its_pair() -> None:
    """And writes the answer there, in one of the four prompts."""
    one, neuron = sums()
    for i, j in (pair for pair, _ in SUMS if pair[0] != pair[1]):  # a pair of equals stands at i itself, too
        found = f.top_activations(one.model, f"m1/n{neuron[i, j]}", one.task, top=2, window=3)
        best = found.snippets[0]
        assert best.text == f"0 {i} 7 {j}" and (best.at, best.token) == (3, f" {j}")
        assert float(found.attribution) == pytest.approx(LOGIT / len(SUMS), abs=0.01)
        assert found.zero > 0.8 and found.promoted[0][0] == str(1 + (i + j) % 6)


def test_of_prompts_that_begin_alike_one_counts(toy: Any, texts: list[str]) -> None:
    """64 texts begin with one of four pairs of tokens; their activations there are one."""
    found = f.top_activations(toy, "m0/n7", texts, top=40, window=0)
    beginnings = [texts[each.prompt].split()[: each.position + 1] for each in found.snippets]
    assert len({" ".join(each) for each in beginnings}) == len(beginnings) == 40
    assert [each.activation for each in found.snippets] == sorted(
        (each.activation for each in found.snippets), reverse=True
    )


# ------------------------------------------------------------------ all heights


def test_the_histogram_is_numpys(toy: Any, texts: list[str]) -> None:
    values = f.activations(toy, texts, "m1.neurons", position="all").values[:, [3, 40]].numpy()
    for number, unit in enumerate(f.top_activations(toy, ["m1/n3", "m1/n40"], texts, window=4)):
        own = values[:, number].astype(float)
        counts, edges = unit.histogram
        assert (counts == np.histogram(own, edges)[0]).all() and counts.sum() == len(own)
        assert BINS / 2 < max(abs(edges)) / (edges[1] - edges[0]) <= BINS + 1
        assert edges[0] <= own.min() < edges[1] and edges[-2] <= own.max() < edges[-1]
        assert 5 <= len(unit.quantiles) <= 10 and unit.zero == 0
        for each in unit.quantiles:
            assert each.count == ((own >= each.low) & (own < each.high)).sum()
            assert len(each.snippets) == min(5, each.count)
            assert all(each.low <= snippet.activation < each.high for snippet in each.snippets)


def test_what_is_0_is_in_no_bin(toy: Any, texts: list[str]) -> None:
    """A feature that is active at few tokens."""
    acts = f.activations(toy, texts, "m1")
    sae = f.train_sae(acts, n=32, k=2, steps=30)
    values = sae.encode(acts.values).numpy()
    which = [int(each) for each in np.argsort((values > 0).mean(0))[[-1, -4, -8]]]
    for number, unit in zip(which, f.top_activations(toy, [sae[i] for i in which], texts), strict=True):
        own = values[:, number]
        assert unit.zero == pytest.approx((own == 0).mean()) and sum(unit.counts) == (own != 0).sum()
        assert unit.high == pytest.approx(own.max(), abs=1e-5) and unit.unit == f"m1/f{number}"
        assert all(each.activation != 0 for each in unit.snippets)
        alone = f.top_activations(toy, sae[number], texts)
        assert alone.counts == unit.counts and len(alone.snippets) == len(unit.snippets)
    none = f.top_activations(toy, sae[int((values > 0).mean(0).argmin())], texts)
    if none.zero == 1:
        assert not none.snippets and not none.counts and not none.quantiles


def test_a_vector_is_projected_on(toy: Any, texts: list[str]) -> None:
    vector = torch.randn(128, generator=torch.Generator().manual_seed(0))
    found = f.top_activations(toy, vector, texts, at="a1.h3", top=5)
    values = f.activations(toy, texts, "a1.h3").values @ (vector / vector.norm())
    assert found.high == pytest.approx(float(values.max()), abs=1e-5)
    assert found.low == pytest.approx(float(values.min()), abs=1e-5) and found.low < 0
    both = f.top_activations(toy, ["m1/n3", vector], texts, at="a1.h3", top=5)
    assert both[1].high == found.high and both[0].unit == "m1/n3"
    assert f.top_activations(toy, vector.tolist(), texts[:1], at="a1.h3").unit == found.unit


def test_a_stream_of_texts_is_a_list_of_them(
    toy: Any, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts; an error tells the number in all of them."""
    whole, told = f.top_activations(toy, "m1/n3", texts, top=5), list[tuple[int, int]]()
    monkeypatch.setattr(active, "_AT_ONCE", 10)
    again = f.top_activations(
        toy, "m1/n3", iter(texts), top=5, batch_size=3, progress=lambda *each: told.append(each)
    )
    assert again.counts == whole.counts and again.prompts == len(texts)
    assert [each.text for each in again.snippets] == [each.text for each in whole.snippets]
    assert told[-1] == (64, 64) and all(done <= total for done, total in told)
    with pytest.raises(cd.CircuitDiscoveryError, match=r"text 25.* does not know a word of 'The zebra'"):
        f.top_activations(toy, "m1/n3", [*texts[:25], "The zebra"])


def test_what_is_kept_does_not_grow() -> None:
    """Of tens of thousands of tokens, whose range grows a thousandfold as they come."""
    draw, kept = np.random.default_rng(0), Highest(top=7, window=2, each=3)
    every = list[np.ndarray]()
    for number in range(40):
        values = draw.normal(size=(8, 64)) * 1.2**number
        kept.add(Batch(range(8 * number, 8 * number + 8), draw.integers(0, 999, (8, 64)), values,
                       draw.random((2, 8, 64)), 0))  # fmt: skip
        every.append(values)
        assert len(kept.highest) == len(kept.random) == 7
        assert len(kept.counts) <= 2 * BINS + 2 and max(map(len, kept.samples.values())) <= 3
    found = list(kept.bins(2 * BINS + 2))
    edges = [found[0][0], *(high for _, high, *_ in found)]
    assert [count for *_, count, _ in found] == np.histogram(every, edges)[0].tolist()
    assert kept.highest[0][0].value == np.max(every)


@pytest.mark.parametrize("at_once", [1, 3, 12])
@pytest.mark.parametrize("zeros", [0, 0.3])
def test_the_highest_of_negative_values_are_found_between_zeros(at_once: int, zeros: float) -> None:
    """As the slow one finds them among the others, whatever comes together."""
    draw, kept = np.random.default_rng(0), Highest(top=5, window=1, each=2)
    values = -draw.random((12, 9)) - 0.1
    values[draw.random((12, 9)) < zeros] = 0
    values[:, 0] = 1
    tokens = np.arange(12 * 9).reshape(12, 9)
    for start in range(0, 12, at_once):
        part = slice(start, start + at_once)
        numbers = range(start, start + at_once)
        kept.add(Batch(numbers, tokens[part], values[part], draw.random((2, at_once, 9)), 1))
    places = spread(np.where(values == 0, -np.inf, values), 5, 1)
    assert [(seen.prompt, seen.position) for seen, _ in kept.highest] == places


def test_random_ones_are_drawn_alike() -> None:
    """Each token is as likely as any other to be among the random ones of its bin, and of all."""
    hits, of_bin = np.zeros(30), np.zeros(30)
    values = np.concatenate([np.full((1, 15), 1.0), np.full((1, 15), 1.75)], 1)
    for seed in range(400):
        kept, chance = Highest(top=3, window=0, each=2), np.random.default_rng(seed).random((2, 1, 30))
        kept.add(Batch([0], np.arange(30)[None], values, chance, 0))
        hits[[seen.position for _, seen in kept.random]] += 1
        of_bin[[seen.position for some in kept.samples.values() for _, seen in some]] += 1
    for found, expected in ((hits, 400 * 3 / 30), (of_bin, 400 * 2 / 15)):
        assert abs(found - expected).max() < 4.5 * expected**0.5


def test_the_seed_decides_what_is_drawn(toy: Any, texts: list[str]) -> None:
    """Any token of any text, and the same whatever the batch."""
    drawn = [f.top_activations(toy, "m0/n1", texts[:8], top=1, seed=seed).random[0] for seed in range(40)]
    assert {each.position for each in drawn} >= set(range(2, 9)) and len({each.prompt for each in drawn}) == 8
    one = f.top_activations(toy, "m0/n1", texts[:8], top=1, seed=3, batch_size=1)
    assert one.random[0].text == drawn[3].text and one.random[0].position == drawn[3].position


# ------------------------------------------------------------------ what it writes


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "llama", "neox_parallel"])
@pytest.mark.parametrize("node", ["m1", "a0"])
def test_all_units_of_a_node_write_directly_what_it_does(name: str, node: str, tinies: Any) -> None:
    """Neurons, and where the MLP has a bias the directions of what it writes; and of all heads what their
    output matrix reads. By what `explain` says of the nodes, by other code; Gemma has norms after nodes."""
    tiny = tinies(name)
    prompts, block = tiny.prompts, tiny.model.blocks[1]
    task = cd.Task.from_tokens(
        clean=prompts.clean,
        corrupted=prompts.corrupted,
        correct=prompts.correct,
        incorrect=prompts.incorrect,
    )
    at, units = None, [f"m1/n{i}" for i in range(block.d_mlp)]
    if node == "a0":
        at, units = "a0.z", list(torch.eye(block.W_O.shape[0] * block.W_O.shape[1]))
    elif block.b_out is not None:
        at, units = "m1", list(torch.eye(tiny.model.d_model))
    found = sum(float(each.attribution) for each in f.top_activations(tiny.model, units, task, top=1, at=at))
    nodes = ["m1"] if node == "m1" else [f"a0.h{i}" for i in range(tiny.model.n_heads)]
    cards = cd.explain(tiny.model, task, cd.Circuit.full(tiny.model.graph), nodes=nodes).cards
    assert found == pytest.approx(sum(float(card.direct) for card in cards.values()), abs=1e-5)


def test_words_are_of_the_unembedding(toy: Any, texts: list[str]) -> None:
    found = f.top_activations(toy, "m1/n3", texts[:2])
    column = toy.blocks[1].W_out[:, 3]
    logits = toy.W_U @ ((column - column.mean()) * toy.final_norm.scale)
    assert [toy.tokenizer.decode([int(i)]) for i in logits.topk(10).indices] == [t for t, _ in found.promoted]
    assert found.promoted[0][1] == pytest.approx(float(logits.max()), abs=1e-5)
    assert found.suppressed[0][1] == pytest.approx(float(logits.min()), abs=1e-5)


# ------------------------------------------------------------------ as it is shown


EVIL = "</span><script>alert(1)</script>&\"'"


class Tags(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.said = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)

    def handle_data(self, data: str) -> None:
        self.said += data


def made(snippets: int = 12, words: tuple[str, ...] = ("a", " b", " c"), seed: int = 0) -> TopActivations:
    draw = np.random.default_rng(seed)

    def snippet(number: int, scale: float) -> Snippet:
        values = tuple((scale * draw.random(len(words))).tolist())
        return Snippet("".join(words), words[1], values[1], number, 1, 1, words, values)

    own = tuple(snippet(i, 1.0) for i in range(snippets))
    others = tuple(snippet(snippets + i, 0.2) for i in range(snippets))
    bins = tuple(f.Bin(i / 2, i / 2 + 0.5, 3, own[i : i + 2]) for i in range(2))
    edges = (0.0, 0.5, 1.0)
    word = (words[0], 1.0)
    return TopActivations(
        "m1/n3", "toy", None, 9, 99, 0.5, 0.0, 1.0, own, others, bins, edges, (3, 3), (word,), (word,)
    )


def test_texts_are_escaped(toy: Any) -> None:
    found = made(words=("x", EVIL, " y"))
    for page in (found._repr_html_(), found.html()):
        tags = Tags(page)
        assert set(tags.names) <= {*("html", "head", "meta", "title", "style", "body", "main", "div", "h2", "p"),
                                   *("h3", "table", "tbody", "tr", "td", "span", "b", "br")}  # fmt: skip
        assert tags.said.count(EVIL) >= 12
    assert found.html().count("http") == 1  # http-equiv, and no address


def test_the_strongest_token_has_the_strongest_ground(toy: Any, agreement: Any) -> None:
    found = f.top_activations(toy, "m2/n8", agreement, top=3)
    page, line = found._repr_html_(), str(found).splitlines()
    strengths = [float(each.split(")")[0]) for each in page.split(" / ")[1:]]
    if found.high >= -found.low:
        assert strengths[0] == max(strengths) == 0.85
    assert line[0].startswith("m2/n8 of toy on ")
    token = found.snippets[0].token.strip()
    assert any(f"[{token}]" in each for each in line)


def test_it_comes_back_from_its_file(toy: Any, agreement: Any, tmp_path: Any) -> None:
    found = f.top_activations(toy, "m2/n8", agreement, top=3)
    found.save(tmp_path / "a.json")
    again = TopActivations.load(tmp_path / "a.json")
    assert again.to_dict() == found.to_dict() == json.loads((tmp_path / "a.json").read_text())
    assert str(again) == str(found) and again.html() == found.html()
    assert list(found.to_dataframe()["activation"]) == [each.activation for each in found.snippets]


# ------------------------------------------------------------------ explanation score


def true_of(found: TopActivations) -> dict[tuple[str, ...], list[tuple[float, ...]]]:
    table: dict[tuple[str, ...], list[tuple[float, ...]]] = {}
    for each in (*found.snippets, *found.random):
        table.setdefault(each.tokens, []).append(each.activations)
    return table


def test_a_perfect_simulator_scores_1_and_a_shuffled_one_0(toy: Any, texts: list[str]) -> None:
    found = f.top_activations(toy, "m1/n40", texts, top=20)
    known = true_of(found)

    def perfect(tokens: list[str]) -> list[float]:
        return [5 * value - 2 if value == value else 0.0 for value in known[tuple(tokens)][0]]

    whole = found.score(perfect)
    assert float(whole.score) == pytest.approx(1, abs=1e-6) and whole.score.low > 0.999
    assert whole.random == pytest.approx(1, abs=1e-6)
    draw = np.random.default_rng(0)
    shuffled = found.score(lambda tokens: draw.permutation(perfect(tokens)))
    assert abs(draw_mean(found, draw)) < 0.1 and abs(shuffled.score) < 0.5
    assert float(found.score(lambda tokens: [-each for each in perfect(tokens)]).score) == pytest.approx(-1)


def draw_mean(found: TopActivations, draw: np.random.Generator) -> float:
    scores = [float(found.score(lambda tokens: draw.normal(size=len(tokens))).score) for _ in range(40)]
    return float(np.mean(scores))


def test_the_score_is_numpys_correlation_over_all_tokens_together() -> None:
    found, asked = made(), list[list[str]]()

    def predict(tokens: list[str]) -> list[float]:
        asked.append(tokens)
        return [float(len(asked) + 2 * i) for i in range(3)]

    scored = found.score(predict)
    rows = [*found.snippets[1::2], *found.random[:6]]
    told = np.concatenate([[number + 2 * i for i in range(3)] for number in range(1, 13)])
    expected = np.corrcoef(np.concatenate([each.activations for each in rows]), told)[0, 1]
    assert float(scored.score) == pytest.approx(expected) and scored.snippets == 6
    assert scored.score.low < scored.score < scored.score.high


def test_tokens_that_an_explanation_is_made_from_are_not_scored(gpt2: Tiny) -> None:
    """Long prompts, in which snippets overlap: a simulator that knows only what it was shown scores none."""
    rows = torch.randint(0, 100, (3, 30), generator=torch.Generator().manual_seed(0)).tolist()
    found = f.top_activations(gpt2.model, "m0/n3", rows, top=12, window=3)
    places = lambda each: [(each.prompt, each.position - each.at + i) for i in range(len(each.tokens))]  # noqa: E731
    shown = {place for each in found.snippets[::2] for place in places(each)}
    asked, kept = list[list[str]](), list[tuple[float, float]]()
    told = found.score(lambda tokens: asked.append(tokens) or range(len(tokens)))  # type: ignore[func-returns-value]
    for some in (found.snippets[1::2], found.random):
        fresh = [
            [(value, i) for i, (place, value) in enumerate(zip(places(each), each.activations, strict=True))
             if place not in shown and value == value]
            for each in some
        ]  # fmt: skip
        kept += [pair for pairs in [each for each in fresh if each][: told.snippets] for pair in pairs]
    every = sum(len(each.tokens) for each in (*found.snippets[1::2], *found.random))
    assert len(asked) == 2 * told.snippets and len(kept) < every - 12
    assert float(told.score) == pytest.approx(np.corrcoef(np.array(kept).T)[0, 1])


def test_the_interval_of_a_score_covers() -> None:
    """A simulator of correlation .7 with the truth, on snippets of which each has a height of its own."""

    def drawn(draw: np.random.Generator, count: int, high: float) -> list[np.ndarray]:
        true = draw.exponential(size=(count, 20)) * draw.uniform(0.5, high, (count, 1))
        said = true + draw.normal(size=(count, 20)) * 0.8 + 0.5 * draw.normal(size=(count, 1))
        return list(np.stack([true, said], 1))

    from circuitdiscovery.features.scoring import _with_interval

    wide = np.random.default_rng(1)
    truth = correlation([*drawn(wide, 20_000, 3), *drawn(wide, 20_000, 1)])
    hits, draw = 0, np.random.default_rng(2)
    for _ in range(300):
        groups = [drawn(draw, 10, 3), drawn(draw, 10, 1)]
        found = _with_interval(correlation([*groups[0], *groups[1]]), groups)
        hits += found.low <= truth <= found.high
    assert hits >= 0.92 * 300


def test_an_explanation_is_made_of_other_snippets_than_it_is_scored_on() -> None:
    found = made(snippets=8)
    each = [f"w{i}" for i in range(8)]
    own = tuple(
        Snippet(w, w, 1.0 - i / 10, i, 1, 1, ("t", w), (0.5, 1.0 - i / 10)) for i, w in enumerate(each)
    )
    found = cd.features.TopActivations(**{**found.__dict__, "snippets": own})
    asked, scored = list[str](), set[str]()
    assert found.explain(lambda text: asked.append(text) or " nouns. ") == "nouns."  # type: ignore[func-returns-value]
    told = {word for word in each if f"'{word}'\t" in asked[0]}
    found.score(lambda tokens: (scored.update(tokens), range(len(tokens)))[1])
    assert told == {"w0", "w2", "w4", "w6"} and not told & scored and {"w1", "w3", "w5", "w7"} <= scored
    assert "'w0'\t10\n" in prompt(found) and "'w6'\t4\n" in prompt(found) and "'t'\t5\n" in prompt(found)


@pytest.mark.parametrize(
    ("predict", "told"),
    [
        (lambda tokens: [1.0], r"must give 3 numbers, one for every token of 'a b c', not \[1\]"),
        (lambda tokens: ["x"] * 3, "must give a number for every token"),
        (lambda tokens: [float("nan")] * 3, "numbers that are not finite"),
        (lambda tokens: [1.0] * 3, "is the same for every token: there is no correlation"),
    ],
)
def test_what_cannot_be_scored(predict: Any, told: str) -> None:
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        made().score(predict)
    with pytest.raises(cd.CircuitDiscoveryError, match="needs 4 of the highest snippets and 2 random ones"):
        made(snippets=3).score(lambda tokens: range(len(tokens)))
    with pytest.raises(cd.CircuitDiscoveryError, match="complete must give the text"):
        made().explain(lambda text: " ")
    with pytest.raises(cd.CircuitDiscoveryError, match="is active nowhere"):
        made(snippets=0).explain(lambda text: "x")


@pytest.mark.parametrize(
    ("unit", "given", "options", "told"),
    [
        ("m1", ["The dog"], {}, "m1 is not one neuron; one of its neurons is m1/n0"),
        ("m9/n1", ["The dog"], {}, "has no site 'm9/n1'"),
        ([], ["The dog"], {}, "unit is an empty list"),
        ("no site", ["The dog"], {}, "does not say where in a model it stands"),
        ("m1/n1", [], {}, "there is no prompt"),
        ("m1/n1", [""], {}, "makes no token"),
        ("m1/n1", ["The"], {}, "no token but the first of each; first=True keeps it"),
        ("m1/n1", 7, {}, "must be a text, several texts"),
        ("m1/n1", ["The dog"], {"at": "m1"}, "at is for vectors"),
        ("m1/n1", ["The dog"], {"top": 0}, "top must be"),
    ],
)
def test_what_cannot_be_looked_for(toy: Any, unit: Any, given: Any, options: Any, told: str) -> None:
    if unit == "no site":
        unit = f.train_sae(torch.randn(99, 128), n=4, k=2, steps=1)[0]
    with pytest.raises(cd.CircuitDiscoveryError, match=told):
        f.top_activations(toy, unit, given, **options)


# ------------------------------------------------------------------ on the command line


def command(*words: Any) -> Any:
    from click.testing import CliRunner

    from circuitdiscovery.cli.commands import cli

    return CliRunner().invoke(cli, ["neuron", *map(str, words)])


def test_the_command_says_what_the_function_does(
    toy: Any, texts: list[str], tmp_path: Any, agreement: Any
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n\n".join(texts[:8]) + "\n")
    ran = command("toy", "m1/n3", "--texts", file, "--top", 3, "--json", "--html", tmp_path / "a.html")
    assert ran.exit_code == 0, ran.output
    expected = f.top_activations(toy, "m1/n3", texts[:8], top=3)
    assert json.loads(ran.stdout) == json.loads(json.dumps(expected.to_dict()))
    assert (tmp_path / "a.html").read_text() == expected.html()
    ran = command("toy", "m1/n3", "subject-verb-agreement", "--examples", 48, "--top", 2)
    assert ran.stdout == f"{f.top_activations(toy, 'm1/n3', agreement, top=2)}\n"
    sae = f.train_sae(f.activations(toy, texts, "m1"), n=16, k=2, steps=5)
    sae.save(tmp_path / "sae")
    ran = command("toy", "m1/f3", "--dictionary", tmp_path / "sae", "--texts", file)
    assert ran.exit_code == 0 and ran.stdout.startswith("m1/f3 of toy on 80 tokens of 8 texts")
    ran = command("toy", "m2/f3", "--dictionary", tmp_path / "sae", "--texts", file)
    assert "UNIT 'm2/f3' is no feature of the dictionary; one is m1/f0" in str(ran.exception)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["toy", "m1/n3"], "give a TASK, or --texts FILE"),
        (["toy", "m1/n3", "--texts", "a.txt"], "cannot read a.txt"),
        (["toy", "m1/n3", "--texts", "none.txt"], "none.txt"),
        (["toy", "m1/n3", "ioi", "--html", "a.txt"], "must end in .html"),
        (["toy", "m1/n9999", "ioi"], "m1 has no neuron 9999"),
    ],
)
def test_what_the_command_refuses(words: list[str], told: str) -> None:
    ran = command(*words)
    assert ran.exit_code and told in f"{ran.output}{ran.exception}"
