"""`load_sae`: which format a folder is in, and the dictionary in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from circuitdiscovery.arguments import guarded
from circuitdiscovery.errors import CircuitDiscoveryError, unknown
from circuitdiscovery.features import circuit_tracer, gemma_scope, sae_lens, sparsify
from circuitdiscovery.features.dictionary import Dictionary
from circuitdiscovery.features.sites import checked_site, layers_of
from circuitdiscovery.features.whole import READS
from circuitdiscovery.files.disk import is_folder

# whose, and the files that such a folder has: the weights and what describes them
_FORMATS: dict[str, tuple[str, str | None]] = {
    "SAE Lens": (sae_lens.WEIGHTS, sae_lens.CONFIG),
    "EleutherAI's sparsify": (sparsify.WEIGHTS, sparsify.CONFIG),
    "Gemma Scope 2": (gemma_scope.WEIGHTS, gemma_scope.CONFIG),
    "Gemma Scope": (gemma_scope.ARRAYS, None),
}
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")


@guarded
def load_sae(
    folder: str | Path,
    *,
    layer: int | None = None,
    site: str | None = None,
    reads: str | None = None,
    centred: bool | None = None,
) -> Dictionary:
    """Read a sparse dictionary: a sparse autoencoder, or a transcoder.

    Formats, told apart by the files that are there: SAE Lens (`cfg.json`, `sae_weights.safetensors`:
    standard, topk, jumprelu, gated, and transcoders), EleutherAI's sparsify (`cfg.json`, `sae.safetensors`,
    or folders of them, one for each place), circuit-tracer's transcoders (`config.yaml`,
    `layer_N.safetensors`), Gemma Scope (`params.npz`; Lieberum et al. 2024, arXiv 2408.05147) and Gemma Scope
    2 (`config.json`, `params.safetensors`).
    Nothing in a file can run: a pickle is not read.

    Args:
        folder: with the files of one of these formats.
        layer: which one, where the folder has one for each layer.
        site: where the dictionary stands, where the folder does not say ("m2", "a1.z", "resid5").
        reads: what it reads, where the folder does not say: "output" (an autoencoder), or of a transcoder
            "normed" (what the MLP's norm gives), "normed without gain" or "stream" (before the norm). Which
            of the first two a folder calls `ln2.hook_normalized` is decided at the model, or here.
        centred: of SAE Lens, whether TransformerLens had centred the weights that write to the stream
            (`center_writing_weights`), as for gpt2-small-res-jb and others of its time: then the mean over
            the width is taken from each activation and given back. By default what the folder says; old ones
            do not.

    Returns:
        The dictionary, in float32 or float64.

    Raises:
        CircuitDiscoveryError: a folder in none of the formats; an architecture or an option that is not
            computed, by name; a tensor that is missing, of a wrong shape or not finite; a layer that is
            needed and not given.

    >>> import tempfile, torch
    >>> tensors = {name: torch.eye(2) for name in ("W_enc", "W_dec")}
    >>> tensors |= {name: torch.zeros(2) for name in ("b_enc", "b_dec")}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Dictionary("relu", "m1", "output", **tensors).save(folder)
    ...     load_sae(folder).encode(torch.tensor([3.0, -2.0]))
    tensor([3., 0.])
    """
    path = Path(folder).expanduser()
    if site is not None:
        checked_site(site, "load_sae")
    if reads is not None and reads not in READS:
        raise unknown("input", reads, READS, plural="values of reads")
    if not is_folder(path):
        what = "is a file; give the folder that it is in" if path.is_file() else "is not a folder"
        raise CircuitDiscoveryError(f"load_sae: {path} {what}")
    if centred is not None and not (path / sae_lens.WEIGHTS).is_file():
        raise CircuitDiscoveryError(f"{path}: centred= is of a folder of SAE Lens, which this is not")
    found = _read(path, layer, reads, centred)
    if found.reads == "hook_normalized" and reads in ("normed", "normed without gain"):
        found = replace(found, reads=reads, digest="")
    if layer is not None and found.site is not None and layer not in layers_of(found.site):
        raise CircuitDiscoveryError(
            f"{path}: layer {layer} is asked for, but the dictionary is of {found.site}"
        )
    for name, given, told in (("site", site, found.site), ("reads", reads, found.reads)):
        if given is not None and told is not None and given != told:
            raise CircuitDiscoveryError(f"{path}: {name} is {told!r} by the folder, not {given!r}")
    return found if site is None else replace(found, site=site)


def _read(path: Path, layer: int | None, reads: str | None, centred: bool | None) -> Dictionary:
    """The dictionary, by the files that are there."""
    readers: dict[str, Callable[[], Dictionary]] = {
        "SAE Lens": lambda: sae_lens.read(path, reads, centred),
        "EleutherAI's sparsify": lambda: sparsify.read(path, path.name, reads),
        "Gemma Scope 2": lambda: gemma_scope.read_second(path),
        "Gemma Scope": lambda: gemma_scope.read_first(path, reads),
    }
    for whose, (weights, config) in _FORMATS.items():
        if not (path / weights).is_file():
            continue
        if config is not None and not (path / config).is_file():
            raise CircuitDiscoveryError(
                f"{path}: {weights} of {whose} is there, but {config} beside it is missing"
            )
        return readers[whose]()
    if (path / circuit_tracer.CONFIG).is_file():
        return circuit_tracer.read(path, layer)
    if sparsify.folders(path):
        return sparsify.read_layer(path, layer, reads)
    raise CircuitDiscoveryError(f"{path}: there is no dictionary in this folder; {_looked_for(path)}")


def _looked_for(path: Path) -> str:
    """What would have been read, and a pickle that is not."""
    files = [*(weights for weights, _ in _FORMATS.values()), circuit_tracer.CONFIG]
    pickles = sorted(each.name for each in path.iterdir() if each.suffix in _PICKLES)
    why = f"; {pickles[0]} is a pickle, which can run code: it is not read" if pickles else ""
    return f"looked for {', '.join(files)}, and folders such as layers.0.mlp with {sparsify.WEIGHTS}{why}"
