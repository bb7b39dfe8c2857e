"""From Graphviz' DOT language to a picture, laid out and rendered inside the process by `pygraphviz`."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from circuitdiscovery.errors import CircuitDiscoveryError

MANY, COARSE = 2000, 60  # of more edges, a PNG has so few dots an inch: it costs its area times its lines


def render(dot: str, kind: str) -> bytes:
    """A picture in Graphviz' DOT language as svg, png or pdf.

    Raises:
        CircuitDiscoveryError: Graphviz could not.
    """
    import pygraphviz

    try:
        picture = pygraphviz.AGraph(dot)
    except pygraphviz.DotError as error:
        told = " ".join(str(error).split())
        raise CircuitDiscoveryError(f"Graphviz could not read the circuit's drawing: {told}") from None
    coarse = kind == "png" and picture.number_of_edges() > MANY
    with _quiet_fontconfig():
        rendered: bytes | None = picture.draw(
            format=kind, prog=picture.graph_attr["layout"], args=f"-Gdpi={COARSE}" if coarse else ""
        )
    if rendered is None:
        raise CircuitDiscoveryError(f"Graphviz could not render the circuit as {kind}")
    return rendered


@contextmanager
def _quiet_fontconfig() -> Iterator[None]:
    """Hold back what the C libraries say of the font configuration; whatever else they say is passed on."""
    if not sys.stderr:  # in a program without a console
        yield
        return
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as heard:
        os.dup2(heard.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            heard.seek(0)
            for line in heard.read().decode(errors="replace").splitlines():
                if "Fontconfig" not in line:
                    print(line, file=sys.stderr)
