"""Pictures by matplotlib."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from circuitdiscovery.files.disk import ending, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")


def figure_path(path: str | Path | None) -> Path | None:
    """The path of a picture, checked before anything is drawn; None where none is wanted.

    Raises:
        CircuitDiscoveryError: another ending than .png, .svg or .pdf.
    """
    if path is not None:
        ending(path, *ENDINGS)
    return None if path is None else Path(path)


def write_figure(figure: Figure, path: Path | None) -> Figure:
    """A figure, written where a path is given: without a date or a program's name, so that the same figure is
    the same file."""
    if path is not None:
        kind, buffer = path.suffix.lower()[1:], BytesIO()
        unsaid = {"Software": None} if kind == "png" else {"CreationDate" if kind == "pdf" else "Date": None}
        figure.savefig(buffer, format=kind, dpi=130, metadata=unsaid)
        write_atomically(path, buffer.getvalue())
    return figure
