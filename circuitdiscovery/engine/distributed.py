"""Several processes on one search: each runs its share of a task's examples, and what they found is summed.

The processes are those of torch.distributed's default group, all of which make the same calls with the same
arguments. Without a group, one process has all the work, and nothing here does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from circuitdiscovery.task.task import Task

T = TypeVar("T")


def _joined() -> Any:
    """torch.distributed where this process is in a group, else None; without torch
    there is none, and torch is not imported.
    """
    dist: Any = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None


def world_size() -> int:
    """How many processes share the work."""
    dist = _joined()
    return 1 if dist is None else dist.get_world_size()


def rank() -> int:
    """Which of them this is; 0 is the one that writes files and prints."""
    dist = _joined()
    return 0 if dist is None else dist.get_rank()


# ----------------------------------------------------------------- the work


def share(task: Task) -> list[int]:
    """The rows of a task's examples that are this process's: as many as the
    others', or one fewer, and of like lengths.

    With fewer examples than processes the last processes have none.
    """
    rows = sorted(range(len(task)), key=lambda row: len(task.examples[row].clean))
    return sorted(rows[rank() :: world_size()])


def total(values: Tensor) -> Tensor:
    """The sum over the processes, bitwise the same in all of them; `values` itself may be overwritten."""
    return _reduced(values, "SUM")


def least(value: int) -> int:
    """The least over the processes."""
    import torch

    return int(_reduced(torch.tensor(value), "MIN"))


def _reduced(values: Tensor, how: str) -> Tensor:
    dist = _joined()
    if dist is None:
        return values
    # as in cpu:gloo,cuda:nccl
    devices = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
    device = (
        values.device.type if values.device.type in devices else "cpu" if "cpu" in devices else devices[0]
    )
    there = values.contiguous() if values.device.type == device else values.to(device)
    dist.all_reduce(there, getattr(dist.ReduceOp, how))
    return there.to(values.device)


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives, or raises, in the first process, in all of them; it is called
    only there, and must not need the others.
    """
    dist = _joined()
    if dist is None:
        return make()
    answer: list[Any] = [None, None]
    if rank() == 0:
        try:
            answer = [make(), None]
        except Exception as error:
            answer = [None, error]
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


# ------------------------------------------------------------ the command line


def started() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def launched() -> Iterator[None]:
    """The processes that torchrun started, as one group while this
    lasts; nothing where it started none or one.

    Only the first process writes to standard output and error meanwhile. An error comes out of the process
    that met it first; the others, which met the same or were left alone, exit with 2.
    """
    if started() < 2:
        yield
        return
    import torch
    import torch.distributed as dist

    # before there is a group: the defaults of its functions hold the one that there is when it is imported,
    # and a group that is held has threads when Python exits, which aborts the process now and then
    import torch.distributed.nn
    from torch.distributed.rendezvous import rendezvous

    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % gpus)
    # nccl: no two on one GPU
    backend = "cpu:gloo,cuda:nccl" if gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", 1)) else "gloo"
    store, number, size = next(rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=number, world_size=size)
    try:
        if number == 0:
            yield
        else:
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
    except Exception as error:
        if store.add("circuitdiscovery/failed", 1) > 1:
            raise SystemExit(2) from error
        raise
    finally:
        dist.destroy_process_group()
