"""What is measured: functions of the logits at the answer's position and of a
task's answers, each with its direction.

A new metric is one function, and one line in the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from circuitdiscovery.engine import distributed, memory
from circuitdiscovery.engine.finite import finite_logits, finite_values
from circuitdiscovery.errors import CircuitDiscoveryError
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import plain_run, run_tokens
from circuitdiscovery.registry import METRICS, canonical

if TYPE_CHECKING:
    from circuitdiscovery.task.batch import Batch
    from circuitdiscovery.task.task import Task


@dataclass(frozen=True)
class Metric:
    """Your own metric: a function of (logits [examples, vocabulary], task) -> [examples].

    Args:
        name: what reports call it.
        function: differentiable where an attribution method is to use it.
        higher_is_better: whether a larger value means that the model does the task better.
        share: whether it is 0 or 1 on every prompt, which intervals depend on; None: where all values are.
    """

    name: str
    function: Callable[[Tensor, Any], Tensor]
    higher_is_better: bool = True
    share: bool | None = None


@dataclass(frozen=True)
class BoundMetric:
    """A metric of one model on one task (see `bind`).

    Args:
        name, higher_is_better: as in the registry.
        function: [..., B, vocabulary] logits of a batch's examples -> [..., B].
        divergence: it compares with the full model's logits, where its value and its gradient are 0.
        skewed: it is never negative, and about log-normal from prompt to prompt.
        share: it is 0 or 1 on every prompt; None: not known.
    """

    name: str
    higher_is_better: bool
    function: Callable[[Tensor, Batch], Tensor]
    divergence: bool = False
    skewed: bool = False
    share: bool | None = None

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """[..., B, vocabulary] logits of a batch's examples -> [..., B], in
        float32 at least, all of them finite numbers.
        """
        return finite_values(self.function(precise(logits), batch), batch.rows, self.name)

    def damage(self, old: Any, new: Any) -> Any:
        """How much worse `new` is than `old`."""
        return old - new if self.higher_is_better else new - old

    def against(self, full: Callable[[Batch], Tensor]) -> BoundMetric:
        """A divergence from [N, vocabulary] logits of the full model
        on a batch; any other metric as it is."""
        return _from_registry(self.name, full) if self.divergence else self


def _from_registry(name: str, full: Callable[[Batch], Tensor]) -> BoundMetric:
    """The metric of a name; a divergence is from these logits of the full model."""
    known = METRICS[name]
    function = known.load()

    def divergence(logits: Tensor, batch: Batch) -> Tensor:
        return function(full(batch), logits)

    def alone(logits: Tensor, batch: Batch) -> Tensor:
        return _of_examples(function(logits, batch), logits, name)

    measured = divergence if known.divergence else alone
    return BoundMetric(name, known.higher_is_better, measured, known.divergence, known.skewed, known.share)


def by_rows(logits: Tensor) -> Callable[[Batch], Tensor]:
    """The [examples, vocabulary] logits of a task's examples, as those of a batch of them."""
    return lambda batch: logits[batch.rows.to(logits.device)]


def precise(logits: Tensor) -> Tensor:
    """Logits in float32 at least: a sum over a vocabulary in a half precision is no more than a guess."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _gather(values: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """[..., B, V] and [B, k] padded with -1 -> ([..., B, k] values
    with 0 at the padding, [B] number of answers).
    """
    present = answers >= 0
    index = answers.clamp(min=0).expand(*values.shape[:-1], -1)
    return values.gather(-1, index) * present, present.sum(-1)


def _mean_logit(logits: Tensor, answers: Tensor) -> Tensor:
    values, count = _gather(logits, answers)
    return values.sum(-1) / count


def _summed_probability(logits: Tensor, answers: Tensor) -> Tensor:
    return _gather(logits.softmax(-1), answers)[0].sum(-1)


def _best_logit(logits: Tensor, answers: Tensor) -> Tensor:
    values, _ = _gather(logits, answers)
    return values.masked_fill(answers < 0, -torch.inf).amax(-1)


def logit(logits: Tensor, batch: Batch) -> Tensor:
    """The mean logit of the correct answers."""
    return _mean_logit(logits, batch.correct)


def logit_diff(logits: Tensor, batch: Batch) -> Tensor:
    """The mean logit of the correct answers minus that of the
    incorrect ones (Wang et al. 2022, section 2)."""
    return _mean_logit(logits, batch.correct) - _mean_logit(logits, batch.incorrect)


def probability(logits: Tensor, batch: Batch) -> Tensor:
    """The probability of the correct answers together."""
    return _summed_probability(logits, batch.correct)


def prob_diff(logits: Tensor, batch: Batch) -> Tensor:
    """The probability of the correct answers minus that of the
    incorrect ones (Hanna et al. 2023, section 2)."""
    return _summed_probability(logits, batch.correct) - _summed_probability(logits, batch.incorrect)


def nll(logits: Tensor, batch: Batch) -> Tensor:
    """-log of the probability of the correct answers together, in nats."""
    values = logits.log_softmax(-1).gather(-1, batch.correct.clamp(min=0).expand(*logits.shape[:-1], -1))
    return -values.masked_fill(batch.correct < 0, -torch.inf).logsumexp(-1)


def accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """1 where the best correct logit is above the best incorrect one, else 0."""
    ahead = _best_logit(logits, batch.correct) - _best_logit(logits, batch.incorrect)
    return (ahead > 0).to(logits).masked_fill(ahead.isnan(), torch.nan)


def kl_from(reference: Tensor, logits: Tensor) -> Tensor:
    """KL(reference || logits) over the whole vocabulary, summed, in nats and float32
    at least: [..., V] logits each -> [...].
    """
    expected, given = precise(reference).log_softmax(-1), precise(logits).log_softmax(-1)
    # what is given may be gigabytes: its own memory is used where no gradient is asked for
    difference = given - expected if given.requires_grad else given.sub_(expected)
    return -torch.einsum("...v,...v->...", expected.exp(), difference)


def bind(
    metric: str | Metric | Callable[[Tensor, Any], Tensor], model: Model, task: Task, *, plain: bool = True
) -> BoundMetric:
    """The metric by its name, or your own, for a model on a task.

    A plain function's attributes `higher_is_better` and `share` are those of `Metric`.

    Args:
        metric, model, task: which, of what, on what.
        plain: a divergence is from the logits of a plain run, made here. A run under a mask rounds elsewhere,
            which in a half precision is seen: where such runs are measured, plain is False, and `against`
            gives the logits of one with every edge kept.

    Raises:
        CircuitDiscoveryError: an unknown name, with the nearest one.
    """
    if isinstance(metric, str):
        name = canonical("metric", metric)
        if METRICS[name].needs_incorrect and not all(example.incorrect for example in task.examples):
            raise CircuitDiscoveryError(
                f"metric {name!r} needs an incorrect answer in every row of task {task.title!r}"
            )
        given = by_rows(clean_logits(model, task)) if METRICS[name].divergence and plain else _not_given
        return _from_registry(name, given)
    if not isinstance(metric, Metric):
        name, higher = getattr(metric, "__name__", "metric"), getattr(metric, "higher_is_better", True)
        metric = Metric(name, metric, higher, getattr(metric, "share", None))
    return BoundMetric(metric.name, metric.higher_is_better, _own(metric, task), share=metric.share)


def _own(metric: Metric, task: Task) -> Callable[[Tensor, Batch], Tensor]:
    def measured(logits: Tensor, part: Task) -> Tensor:
        values = _of_examples(metric.function(logits, part), logits, metric.name)
        if metric.share and not bool(((values == 0) | (values == 1)).all()):
            raise CircuitDiscoveryError(
                f"metric {metric.name!r} is said to be a share, but is not 0 or 1 everywhere"
            )
        return values

    def function(logits: Tensor, batch: Batch) -> Tensor:
        part = task.select(batch.rows.tolist())
        each = [measured(one, part) for one in logits.reshape(-1, *logits.shape[-2:])]
        return torch.stack(each).reshape(logits.shape[:-1])

    return function


def _of_examples(values: Any, logits: Tensor, name: str) -> Tensor:
    """A metric's values, if there is one for each example."""
    if not isinstance(values, Tensor) or values.shape != logits.shape[:-1]:
        raise CircuitDiscoveryError(
            f"metric {name!r} must return a tensor of [examples] = [{logits.shape[-2]}]"
        )
    return values


def _not_given(batch: Batch) -> Tensor:
    raise AssertionError("what KL is from has not been given: `against` does")


@torch.no_grad()
def clean_logits(model: Model, task: Task) -> Tensor:
    """[examples, vocabulary]: the full model's logits on the clean prompts, at the answers' positions."""
    logits = torch.zeros(len(task), model.vocab_size, device=model.device, dtype=model.dtype)
    size = memory.plain(model, task).at_once(64, memory.budget(model.device))
    for batch in task.batches(size, distributed.share(task), run_tokens=run_tokens(model)):
        batch = batch.to(model.device)
        logits[batch.rows] = plain_run(model, batch.clean, batch.position).logits
    return finite_logits(distributed.total(logits), range(len(task)), "clean")
