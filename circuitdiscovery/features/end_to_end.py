"""What a dictionary's error costs its model: the distance of end-to-end training.

Braun et al. 2024 (arXiv 2405.12241), sections 2.3 and 2.4: KL(model || model with what the dictionary writes
in its site's place), and with weight b the squared errors of the residual streams after the site (their
equation 1). Both are divided by what they are where the mean stands in the site's place, so that the distance
is D where nothing is learnt and 0 where nothing is lost, as that of scaled activations is, and a weight of
sparsity means about as much:

    D (KL / KL of the mean + b mean over streams of (error / error of the mean)) / (1 + b)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from circuitdiscovery.engine.metrics import kl_from, precise
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.features.collecting import Activations
from circuitdiscovery.features.forward import LOGITS, forward, site_of
from circuitdiscovery.features.sites import layers_of
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import run_tokens

_LOGITS_AT_ONCE = 2**25  # numbers; what is learnt depends on it, so it does not follow what memory is free
_PROMPTS_OF_MEAN = 64  # on which the cost of the mean is measured


class Downstream:
    """The model after a site, on the prompts that activations are of.

    Args:
        model: a loaded model.
        written: the activations of the site that a dictionary writes, with their prompts.
        mean: [d], what stands in the site's place where nothing is learnt.
        streams: the weight b of the streams' errors.
        generator: draws the prompts on which the cost of the mean is measured.

    Raises:
        CircuitDiscoveryError: a matrix without prompts, activations of another model, of a site where no
            dictionary can stand or that changes nothing.
    """

    def __init__(
        self, model: Model, written: Activations, mean: Tensor, streams: float, generator: torch.Generator
    ) -> None:
        if written.site is None or not written.prompts:
            raise CircuitDiscoveryError(
                "end_to_end needs the prompts, which a matrix does not have: collect by features.activations"
            )
        if written.model != model.digest:
            raise CircuitDiscoveryError(f"acts are of another model than {model.name}, which is end_to_end")
        site = site_of(model, written.site)
        if site.unit is not None:
            raise CircuitDiscoveryError(f"end_to_end cannot put a dictionary in the place of {site.name}")
        self._model, self._place, self._acts, self._weight = model, site.place, written, streams
        after = range(layers_of(written.site)[-1] + 1, model.n_layers + 1) if streams else ()
        self._wanted = (LOGITS, *(f"resid{layer}" for layer in after))
        order = np.argsort(written.rows.numpy(), kind="stable")
        self._rows = np.split(order, np.flatnonzero(np.diff(written.rows.numpy()[order])) + 1)
        self._apart = run_tokens(model) == 0  # positions depend on a prompt's length
        self._lengths = torch.tensor([len(prompt) for prompt in written.prompts])
        self._cost = [1.0] * len(self._wanted)
        self._cost = self._cost_of(mean, generator)

    def _cost_of(self, mean: Tensor, generator: torch.Generator) -> list[float]:
        """What the mean in the site's place costs, at the logits and at each stream."""
        order = torch.randperm(len(self._rows), generator=generator)[:_PROMPTS_OF_MEAN]
        totals, count = torch.zeros(len(self._wanted), dtype=torch.float64), 0
        for number in order.tolist():
            which = torch.from_numpy(self._rows[number])
            with torch.no_grad():
                found = self._terms(which, mean.expand(len(which), -1))
            totals += torch.stack([each.double().cpu() for each in found]) * len(which)
            count += len(which)
        if not bool((totals > 0).all()):
            raise CircuitDiscoveryError(
                f"the mean in the place of {self._acts.site} changes nothing in {self._model.name}: there is "
                "nothing to learn end to end"
            )
        return (totals / count).tolist()

    def draw(self, most: int, generator: torch.Generator) -> Tensor:
        """Rows of whole prompts at random: about so many, and no more than memory holds logits of."""
        each = len(self._acts) / len(self._rows)
        length = sum(map(len, self._acts.prompts)) / len(self._acts.prompts)
        some = min(most / each, _LOGITS_AT_ONCE / self._model.vocab_size / length)
        numbers = torch.randint(len(self._rows), (max(1, round(some)),), generator=generator)
        return torch.from_numpy(np.concatenate([self._rows[number] for number in numbers.unique().tolist()]))

    def away(self, which: Tensor) -> Callable[[Tensor], Tensor]:
        """The distance of [n, d] values that are written at some rows of whole prompts, averaged over them,
        through which a gradient goes back to the values."""
        width, weight = self._acts.d, self._weight

        def distance(made: Tensor) -> Tensor:
            kl, *errors = self._terms(which, made)
            if not errors:
                return width * kl
            return width * (kl + weight * torch.stack(errors).mean()) / (1 + weight)

        return distance

    def _terms(self, which: Tensor, made: Tensor) -> list[Tensor]:
        """KL and the streams' squared errors, averaged over rows, each over what it is of the mean."""
        lengths = self._lengths[self._acts.rows[which]]
        some = [lengths == length for length in lengths.unique()] if self._apart else [slice(None)]
        sums = [torch.stack(self._sums(which[each], made[each])) for each in some]
        total = torch.stack(sums).sum(0) / len(which)
        return list((total / torch.tensor(self._cost).to(total)).unbind())

    def _sums(self, which: Tensor, made: Tensor) -> list[Tensor]:
        """KL and the streams' squared errors, summed over rows whose prompts run together."""
        model, acts = self._model, self._acts
        numbers, place = acts.rows[which].unique(return_inverse=True)
        prompts = [torch.tensor(acts.prompts[number]) for number in numbers.tolist()]
        # no token reads what comes after it, so shorter prompts may end in any token where their length
        # changes nothing else
        tokens = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(model.device)
        at = place.to(model.device), acts.positions[which].to(model.device)
        with torch.no_grad():
            plain = forward(model, tokens, self._wanted)
        edits = {self._place: lambda x: x.index_put(_on(x, at), made.to(x))}
        found = forward(model, tokens, self._wanted, edits)
        terms = [kl_from(plain[LOGITS][at], found[LOGITS][at]).sum()]
        for name in self._wanted[1:]:
            terms.append(precise((found[name] - plain[name])[_on(found[name], at)]).square().sum())
        return [each.to(made.device) for each in terms]


def _on(x: Tensor, at: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Indices, where what they index is."""
    return at[0].to(x.device), at[1].to(x.device)
