"""How many threads a command runs with: one where its products are small, all of them where they are large.

torch shares each product among all cores, and its threads wait for each other
spinning. A small product gains little by it, and
where another process holds one of the cores it waits for that one every time: a run
    then takes many times as long as with one
thread. The choice follows counts alone, never the clock or the machine's load: the bytes
of a result depend on the number of threads.

It is the command line's. In Python the number is yours,
`torch.set_num_threads`; and OMP_NUM_THREADS settles it in both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from circuitdiscovery.engine.setup import fitting
from circuitdiscovery.model.model import Model
from circuitdiscovery.model.run import parameters
from circuitdiscovery.task.task import Task

_SMALL = 4e9  # weights x tokens of one run: on a core a tenth of a second, in products of a few milliseconds
_SETTLED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def wanted(model: Model, task: Task, batch_size: int | None = None) -> int:
    """The number of threads for a model's runs on a task: 1, or as many as there are now.

    >>> import circuitdiscovery as cd
    >>> model = cd.load_model("toy")
    >>> wanted(model, cd.load_task("ioi", model))
    1
    """
    now = torch.get_num_threads()
    if model.device.type != "cpu" or any(name in os.environ for name in _SETTLED):
        return now
    sizes = sorted((len(example.clean) for example in task.examples), reverse=True)
    tokens = sum(sizes[: fitting(model, model.graph, task) if batch_size is None else batch_size])
    return 1 if parameters(model) * tokens < _SMALL else now


def choose(model: Model, task: Task, batch_size: int | None = None) -> None:
    """Run with the wanted number of threads from now on."""
    torch.set_num_threads(wanted(model, task, batch_size))


@contextmanager
def restored() -> Iterator[None]:
    """Afterwards torch has as many threads as before, whatever was chosen meanwhile."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
