"""Snippets as HTML: in a notebook, and as a page of its own. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitdiscovery.features.snippets import Snippet, TopActivations

STYLE = """
.snips { font: 14px/1.6 system-ui, sans-serif; max-width: 60rem }
.snips h2 { font-size: 1.2em; margin: 0 0 .3em } .snips h3 { font-size: 1em; margin: 1em 0 .3em }
.snips p { margin: .2em 0 } .snips table { border-collapse: collapse; width: 100% }
.snips td { padding: 2px 10px 2px 0; vertical-align: top; text-align: left; border-bottom: 1px solid #8883 }
.snips td.num { width: 1%; white-space: nowrap; font-variant-numeric: tabular-nums; text-align: right }
.snips .text { white-space: pre-wrap; overflow-wrap: anywhere } .snips .tok { border-radius: 2px }
.snips b.tok { outline: 1px solid #8888 }
.snips .bar { display: inline-block; height: .7em; background: #56b4e9 }
""".strip()
_BARS = 180  # pixels of the longest bar


def fragment(found: TopActivations) -> str:
    """For a notebook."""
    return f"<style>{STYLE}</style><div class='snips'>{_inside(found)}</div>"


def page(found: TopActivations) -> str:
    """A whole page, that asks nothing of the network."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        f"<meta charset='utf-8'><meta http-equiv='Content-Security-Policy' content=\"{policy}\">"
        "<meta name='viewport' content='width=device-width'><meta name='color-scheme' content='light dark'>"
        f"<title>{escape(found.unit)}</title><style>{STYLE}\nbody {{ margin: 2rem }}</style>"
    )
    return (
        f"<!doctype html><html lang='en'><head>{head}</head><body><main class='snips'>{_inside(found)}</main>"
        "</body></html>\n"
    )


def _inside(found: TopActivations) -> str:
    first, *lines = str(found).splitlines()[: 5 if found.attribution is not None else 4]
    most = max(abs(found.high), abs(found.low))
    told = "".join(f"<p>{escape(line)}</p>" for line in lines)
    top = _table([(f"{each.activation:.3g}", marked(each, most)) for each in found.snippets])
    rows, largest = [], max((each.count for each in found.quantiles), default=1)
    for each in reversed(found.quantiles):
        bar = f"<span class='bar' style='width:{max(1, round(_BARS * each.count / largest))}px'></span>"
        shown = "<br>".join(marked(some, most) for some in each.snippets)
        height = f"{each.low:.3g} to {each.high:.3g}"
        rows.append((height, f"{each.count:,}", bar if each.count else "", shown))
    return (
        f"<h2>{escape(first)}</h2>{told}<h3>Most active at</h3>{top}"
        f"<h3>By height, a few at random</h3>{_table(rows)}"
    )


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of HTML; all cells but the last are narrow."""
    cells = ([*(f"<td class='num'>{cell}</td>" for cell in row[:-1]), f"<td>{row[-1]}</td>"] for row in rows)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    return f"<table><tbody>{body}</tbody></table>"


def marked(snippet: Snippet, most: float) -> str:
    """A snippet's text, each token on a ground as strong as its activation: blue above 0, orange below."""
    each = zip(snippet.tokens, snippet.activations, strict=True)
    tokens = (_token(text, value, most, i == snippet.at) for i, (text, value) in enumerate(each))
    return f"<span class='text'>{''.join(tokens)}</span>"


def _token(text: str, value: float, most: float, chosen: bool) -> str:
    strength = 0.0 if math.isnan(value) or not most else min(1.0, abs(value) / most)
    colour = "86 180 233" if value >= 0 else "230 159 0"
    style = f" style='background:rgb({colour} / {0.85 * strength:.2f})'" if strength >= 0.02 else ""
    title = "" if math.isnan(value) else f" title='{value:.3g}'"
    name, word = "b" if chosen else "span", text.lstrip(" ")
    return f"{' ' * (len(text) - len(word))}<{name} class='tok'{style}{title}>{escape(word)}</{name}>"
