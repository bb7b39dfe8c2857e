"""The report in a browser: Chromium opens the file from the disk, and does what a reader would do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from circuitdiscovery.circuit.circuit import Circuit
from circuitdiscovery.graph.graph import Graph
from circuitdiscovery.reporting.page import report
from tests.test_report import EVIL, GRAPH, GROUPED, TOKENS, circuit_of, contents_of, explanation_of, make_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium, chromium-browser or google-chrome on the PATH"
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
QUIET += ["--disable-component-update", "--disable-sync"]
LAPTOP = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def browse(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file in a window of its own; whatever the page says on the
    console or asks of the network fails the test.
    """
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def browse(path: Path, **options: Any) -> Any:
        context = chromium.new_context(**{"viewport": LAPTOP, "reduced_motion": "reduce"} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page

    yield browse
    for context in contexts:
        context.close()
    assert not said
    assert all(url.startswith("file://") and url.endswith("report.html") for url in asked), asked


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return circuit_of()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, circuit: Circuit) -> Path:
    return report(make_run(tmp_path_factory.mktemp("browser") / "run", circuit))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real run's folder."""
    folder = tmp_path_factory.mktemp("found")
    options = ["--method", "eap", "--edges", "60", "--examples", "8", "--measure", "quick", "--out", "run"]
    command = [sys.executable, "-m", "circuitdiscovery", "discover", "toy", "ioi", *options]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


def lit(page: Any, name: str) -> set[str]:
    """The nodes of a class."""
    return set(page.eval_on_selector_all(f".node.{name}", "nodes => nodes.map(node => node.dataset.node)"))


def shown_edges(page: Any) -> set[str]:
    visible = "edges => edges.filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.edge)"
    return set(page.eval_on_selector_all(".edge[data-edge]", visible))


def view(circuit: Circuit, edges: set[str] | None = None) -> Any:
    """The circuit, or some of its edges, as networkx sees it, with each group's heads after it."""
    kept = circuit if edges is None else Circuit.from_edges(circuit.graph, edges)
    graph = nx.DiGraph(kept.to_networkx())
    for group, heads in nx.get_node_attributes(graph, "heads").items():
        graph.add_edges_from((group, head) for head in heads.split() if head in graph)
    return graph


# ------------------------------------------------------------------ pointing


def test_pointing_at_an_edge_names_it_and_its_score(
    browse: Callable[..., Any], path: Path, circuit: Circuit
) -> None:
    page = browse(path)
    page.locator("#drawing").scroll_into_view_if_needed()
    find = """name => {
        const edge = document.querySelector(`.edge[data-edge="${name}"]`), line = edge.querySelector(".hit"), at = line.getScreenCTM();
        for (let part = 0.05; part < 1; part += 0.05) {
            const point = line.getPointAtLength(line.getTotalLength() * part).matrixTransform(at);
            if (edge.contains(document.elementFromPoint(point.x, point.y))) return [point.x, point.y];
        }
    }"""
    met = 0
    for edge in circuit.edges[::6]:
        place = page.evaluate(find, edge)
        if place is None:
            continue
        met += 1
        page.mouse.move(*place)
        tip = page.locator("#tip")
        assert tip.is_visible()
        assert tip.inner_text().splitlines()[0] == edge
        assert f"score {circuit.score(edge):+.4g}," in tip.inner_text()
        rank = sorted(circuit.edges, key=lambda name: -abs(circuit.score(name) or 0)).index(edge) + 1
        assert f"rank {rank} of {len(circuit)}" in tip.inner_text()
    assert met >= 4
    page.mouse.move(2, 2)
    assert page.locator("#tip").is_hidden()


def test_the_keyboard_reaches_the_edges_strongest_first(
    browse: Callable[..., Any], path: Path, circuit: Circuit
) -> None:
    page = browse(path)
    strongest = sorted(circuit.edges, key=lambda name: -abs(circuit.score(name) or 0))
    stops = page.eval_on_selector_all('.edge[tabindex="0"]', "edges => edges.map(edge => edge.dataset.edge)")
    assert stops == strongest[:1]
    page.locator("#weak").focus()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.edge !== undefined"):
            break
    for edge in strongest[:4]:
        assert page.evaluate("document.activeElement.dataset.edge") == edge
        assert page.locator("#tip").inner_text().startswith(edge)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.edge") == strongest[3]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.node") is not None


# ------------------------------------------------------------------ choosing


@pytest.mark.parametrize("graph", [GRAPH, GROUPED], ids=["heads", "groups"])
def test_a_chosen_node_lights_what_leads_to_it_and_what_it_leads_to(
    tmp_path: Path, browse: Callable[..., Any], graph: Graph
) -> None:
    circuit = circuit_of(graph, 30, seed=3)
    page = browse(report(make_run(tmp_path / "run", circuit)))
    known = view(circuit)
    for node in known:
        page.locator(f'.node[data-node="{node}"]').click()
        up, down = nx.ancestors(known, node), nx.descendants(known, node)
        assert (lit(page, "selected"), lit(page, "upstream"), lit(page, "downstream")) == ({node}, up, down)
        used = page.eval_on_selector_all(
            ".edge.upstream[data-edge]", "edges => edges.map(edge => [edge.dataset.from, edge.dataset.to])"
        )
        assert {tuple(edge) for edge in used} == {
            (a, b) for a, b in known.edges if b in up | {node} and (a, b) in circuit.to_networkx().edges()
        }
        opened = page.eval_on_selector_all(
            "details.card[open]", "cards => cards.map(card => card.dataset.card)"
        )
        assert node not in graph.sources[1:] or node in opened
        assert page.locator("#selection").inner_text().startswith(f"{node}. Upstream: ")
    page.keyboard.press("Escape")
    assert not lit(page, "selected") and not lit(page, "upstream") and not lit(page, "downstream")
    assert page.locator("#drawing.lit").count() == 0


def test_tab_and_enter_do_what_a_click_does(browse: Callable[..., Any], path: Path, circuit: Circuit) -> None:
    page = browse(path)
    assert page.locator("details.card[open]").count() == 0
    page.locator("#weak").focus()
    names = []
    while len(names) < len(circuit.nodes):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.dataset.node || null")
        names += [name] if name else []
        if name == "m1":
            assert (
                page.evaluate("getComputedStyle(document.activeElement.querySelector('polygon')).strokeWidth")
                == "3px"
            )  # is seen to have it
            page.keyboard.press("Enter")
            assert page.locator('details.card[data-card="m1"]').get_attribute("open") is not None
            assert lit(page, "upstream") == nx.ancestors(view(circuit), "m1")
            assert page.evaluate("document.activeElement.dataset.node") == "m1"
    assert set(names) == set(circuit.nodes)
    assert names[-1] == "logits"  # which has no card, and so is no link
    for key in ("Space", "Enter"):
        page.keyboard.press("Escape")
        assert not lit(page, "selected")
        page.keyboard.press(key)
        assert lit(page, "selected") == {"logits"}


def test_a_link_in_a_card_opens_the_other(browse: Callable[..., Any], path: Path) -> None:
    page = browse(path)
    page.locator(".node[data-node=m1]").click()
    link = page.locator('details.card[data-card="m1"] a.to-card').first
    other = link.inner_text()
    link.click()
    assert lit(page, "selected") == {other}
    assert page.locator(f'details.card[data-card="{other}"]').get_attribute("open") is not None
    card = page.locator(f'details.card[data-card="{other}"]').bounding_box()
    assert 0 <= card["y"] < LAPTOP["height"] / 2
    # the drawing stays in sight beside it
    assert page.locator("#drawing").bounding_box()["y"] < LAPTOP["height"]


def test_the_first_tab_offers_to_skip(browse: Callable[..., Any], path: Path) -> None:
    page = browse(path)
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert page.evaluate("document.activeElement.className") == "skip" and skip.bounding_box()["width"] > 50
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#verdict').getBoundingClientRect().top < 100")


# -------------------------------------------------------------------- slider


@pytest.mark.parametrize("graph", [GRAPH, GROUPED], ids=["heads", "groups"])
def test_the_slider_hides_the_weakest(tmp_path: Path, browse: Callable[..., Any], graph: Graph) -> None:
    circuit = circuit_of(graph, 30, seed=1)
    page = browse(report(make_run(tmp_path / "run", circuit)))
    sizes = {edge: abs(circuit.score(edge) or 0) for edge in circuit.edges}
    assert shown_edges(page) == set(circuit.edges)
    for value in (0, 7, 29, 12):
        page.locator("#weak").fill(str(value))
        least = sorted(sizes.values())[value]
        left = {edge for edge, size in sizes.items() if size >= least}
        assert shown_edges(page) == left and len(left) == 30 - value
        assert page.locator("#left").inner_text().startswith(f"{len(left)} of 30 edges")
        assert page.locator("#weak").get_attribute("aria-valuetext").startswith(f"{len(left)} of 30 edges")
        known = view(circuit, left)
        faded = set(
            page.eval_on_selector_all(
                ".node", "all => all.filter(n => getComputedStyle(n).opacity < 1).map(n => n.dataset.node)"
            )
        )
        assert faded == set(circuit.nodes) - set(known)
        page.locator(".node[data-node=logits]").click()
        assert lit(page, "upstream") == (nx.ancestors(known, "logits") if "logits" in known else set())
        page.keyboard.press("Escape")


def test_a_circuit_without_scores_has_no_slider(tmp_path: Path, browse: Callable[..., Any]) -> None:
    circuit = circuit_of(scored=False)
    page = browse(report(make_run(tmp_path / "run", circuit)))
    assert page.locator("#weak").count() == 0
    assert page.locator("#left").inner_text() == "40 of 40 edges"
    page.locator(".node[data-node=m1]").click()
    assert lit(page, "upstream") == nx.ancestors(view(circuit), "m1")
    assert page.locator('.edge[tabindex="0"]').count() == 1


def test_a_real_models_drawing_works(tmp_path: Path, browse: Callable[..., Any]) -> None:
    """In columns, with frames for groups; a node that is not drawn is said not to be."""
    circuit = circuit_of(Graph(n_layers=30, n_heads=9, n_kv_heads=3), 7000, seed=1)
    page = browse(report(make_run(tmp_path / "run", circuit)), viewport={"width": 1440, "height": 900})
    drawn = shown_edges(page)
    assert (
        0 < len(drawn) <= 60 and f"{len(drawn)} of 7,000 edges shown" in page.locator("#circuit").inner_text()
    )
    names = page.eval_on_selector_all(".node", "nodes => nodes.map(node => node.dataset.node)")
    group = next(name for name in names if ".kv" in name)
    page.locator(f'.node[data-node="{group}"]').click()
    assert lit(page, "downstream") == nx.descendants(view(circuit, drawn), group)
    assert lit(page, "upstream") == nx.ancestors(view(circuit, drawn), group)
    page.locator("#weak").fill(str(len(drawn) - 10))
    assert len(shown_edges(page)) == 10
    page.keyboard.press("Escape")
    missing = next(node for node in circuit.nodes if node not in names and ".kv" not in node)
    page.locator(f'.nodes a[href="#card-{missing}"]').click()
    assert page.locator(f'details.current[data-card="{missing}"]').count() == 1
    assert f"{missing}. It is not in the drawing." in page.locator("#selection").inner_text()
    assert page.locator(".drawing.lit").count() == 0
    box = page.locator("#drawing").bounding_box()
    assert box["width"] < 2.3 * box["height"]


# --------------------------------------------------------------------- looks

# Every text on the screen with its colour and what it stands on, as [r, g,
# b]; a tint over the ground is mixed in.
COLOURS = """() => {
    const parse = text => {
        const numbers = (text.match(/-?[\\d.]+(e-?\\d+)?/g) || []).map(Number), unit = text.startsWith("color(") ? 255 : 1;
        return numbers.length < 3 ? [0, 0, 0, 0] : [...numbers.slice(0, 3).map(n => n * unit), numbers[3] ?? 1];
    };
    const over = (top, under) => under.map((c, i) => top[3] * top[i] + (1 - top[3]) * c);
    const ground = el => {
        const layers = [];
        for (let at = el; at; at = at.parentElement) {
            const style = getComputedStyle(at);
            const tint = style.backgroundImage.match(/(color|rgba?)\\([^)]*\\)/);
            if (tint) layers.push(parse(tint[0]));
            layers.push(parse(style.backgroundColor));
            if (parse(style.backgroundColor)[3] === 1) break;
        }
        return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255]);
    };
    const found = [];
    for (const el of document.querySelectorAll("body *")) {
        const own = [...el.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || ["SCRIPT", "STYLE", "title"].includes(el.tagName) || !el.getClientRects().length || el.closest(".sr, .skip")) continue;
        const svg = el.ownerSVGElement, style = getComputedStyle(el), node = el.closest(".node");
        let under = ground(svg ? svg.parentElement : el);
        const boxes = node && [...node.querySelectorAll("path, polygon, circle")].filter(shape => getComputedStyle(shape).fill !== "none");
        const box = el.closest(".badge") ? el.closest(".badge").querySelector("circle") : boxes && boxes[0];
        if (box) under = over(parse(getComputedStyle(box).fill), under);
        found.push([el.textContent.trim().slice(0, 40), over(parse(svg ? style.fill : style.color), under), under]);
    }
    return found;
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """WCAG 2.2's contrast ratio of two sRGB colours."""

    def luminance(colour: list[float]) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (value / 255 for value in colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_contrast_is_what_wcag_says() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([118, 118, 118], [255, 255, 255]) == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("media", ["screen", "print"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(browse: Callable[..., Any], path: Path, scheme: str, media: str) -> None:
    page = browse(path, color_scheme=scheme)
    page.emulate_media(media=media, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(card => { card.open = true; })")
    texts = page.evaluate(COLOURS)
    assert len(texts) > 500
    unreadable = [
        (text, round(contrast(ink, ground), 2)) for text, ink, ground in texts if contrast(ink, ground) < 4.5
    ]
    assert not unreadable
    dark = sum(page.evaluate(COLOURS)[0][2]) < 3 * 128
    assert dark == (scheme == "dark" and media == "screen")


def test_on_paper_everything_is_open_and_nothing_is_hidden(
    tmp_path: Path, browse: Callable[..., Any], path: Path, circuit: Circuit
) -> None:
    page = browse(path)
    page.locator("#weak").fill("20")
    page.locator(".node[data-node=m1]").click()
    page.emulate_media(media="print")
    # the page hears of it a moment later
    page.wait_for_function("!document.querySelector('details.card:not([open])')")
    assert shown_edges(page) == set(circuit.edges)
    heights = page.eval_on_selector_all(
        ".card-body", "bodies => bodies.map(body => body.getBoundingClientRect().height)"
    )
    assert len(heights) == len(circuit.nodes) - 2 and min(heights) > 50
    for hidden in ("#weak", "nav", "#selection", "#open-all"):
        assert page.locator(hidden).is_hidden()
    assert {
        page.evaluate(f"getComputedStyle(document.querySelector('{what}')).breakInside")
        for what in (".card", "tr", "figure")
    } == {"avoid"}
    opacities = page.eval_on_selector_all(
        ".node, .edge", "all => all.map(each => getComputedStyle(each).opacity)"
    )
    assert set(opacities) == {"1"}
    page.set_viewport_size({"width": 688, "height": 1016})  # A4 within margins of 14 mm
    tallest = page.eval_on_selector_all(
        ".card", "cards => Math.max(...cards.map(card => card.getBoundingClientRect().height))"
    )
    assert tallest < 1016
    assert len(page.pdf(path=tmp_path / "page.pdf")) > 20_000
    page.emulate_media(media="screen")
    page.wait_for_function("document.querySelector('details.card:not([open])')")
    assert len(shown_edges(page)) == 20
    assert page.eval_on_selector_all(
        "details.card[open]", "cards => cards.map(card => card.dataset.card)"
    ) == ["m1"]


@pytest.mark.parametrize("width", [420, 800, 1280, 1920])
def test_nothing_is_wider_than_the_window(browse: Callable[..., Any], path: Path, width: int) -> None:
    page = browse(path, viewport={"width": width, "height": 800})
    page.evaluate("document.querySelectorAll('details').forEach(card => { card.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 905])
def test_a_real_run_is_no_wider_than_the_window(browse: Callable[..., Any], found: Path, width: int) -> None:
    """On a phone, and just above where cards stand beside the drawing: tables scroll, and names wrap."""
    page = browse(found / "report.html", viewport={"width": width, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(card => { card.open = true; })")
    assert page.locator(".lens:not(.units) table").count() and page.locator(".units table").count()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    table = page.locator(".units table").first.bounding_box()
    assert table["width"] > page.locator(".units .scroll").first.bounding_box()["width"]


def test_a_long_name_goes_on_in_the_next_line(
    tmp_path: Path, browse: Callable[..., Any], circuit: Circuit
) -> None:
    options = {"model": "toy", "task": f"{'n' * 240}.csv", "method": "eap"}
    page = browse(report(make_run(tmp_path, circuit, run={"options": options, "summary": {}})))
    assert page.evaluate("document.documentElement.scrollWidth") <= LAPTOP["width"]


def test_without_script_everything_is_there(browse: Callable[..., Any], path: Path, circuit: Circuit) -> None:
    page = browse(path, java_script_enabled=False)
    assert page.locator("details.card[open]").count() == len(circuit.nodes) - 2
    assert page.locator(".card-body").first.is_visible() and page.locator(".heat").first.is_visible()
    assert page.locator(".edge[data-edge]").count() == len(circuit)
    assert page.locator("#weak").is_hidden() and page.locator("#selection").is_hidden()
    assert page.locator("#curve .chart").is_visible()


def test_a_prompt_cannot_run_anything(tmp_path: Path, browse: Callable[..., Any]) -> None:
    circuit = circuit_of()
    tokens = [EVIL, *TOKENS]
    explanation = explanation_of(circuit, tokens, (EVIL, "induction"))
    run = make_run(tmp_path / "run", circuit, report=contents_of(circuit, tokens), explanation=explanation)
    page = browse(report(run))
    page.locator(".node[data-node='a0.h0']").click()
    page.locator(".node[data-node='a0.h0']").hover()
    assert page.evaluate("window.broken") is None
    assert EVIL in page.locator("#tip").inner_text()
    assert EVIL in page.locator("#prompts").inner_text()
