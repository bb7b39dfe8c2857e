"""Processes of their own without the seconds that imports take: forks of this one."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Forked:
    """A process that calls a function in a folder and exits as an interpreter would, its own exit aside."""

    def __init__(
        self,
        run: Callable[[], object],
        folder: Path,
        said: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`said`: an empty folder for what it says."""
        self._files = [said / name for name in ("out", "err")]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads that wait for work
            self.pid = os.fork()
        if self.pid == 0:
            try:
                self._be(run, folder, environment or {})
            finally:
                os._exit(99)

    def _be(self, run: Callable[[], object], folder: Path, environment: Mapping[str, str]) -> None:
        for number, file in enumerate(self._files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
        os.environ.update(environment)
        os.chdir(folder)
        warnings.simplefilter("default")  # tests make errors of them
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            run()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def ended(self) -> Result:
        """What it said, and its status, or -N where signal N killed it."""
        _, status = os.waitpid(self.pid, 0)
        return Result(os.waitstatus_to_exitcode(status), *(file.read_text("utf-8") for file in self._files))


def as_torchrun(count: int, run: Callable[[], object], folder: Path, said: Path) -> list[Result]:
    """As many processes as torchrun would start on one machine, with the environment that it gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for number in range(count):
        (said / str(number)).mkdir()
        sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        own = {"RANK": str(number), "LOCAL_RANK": str(number)}
        processes.append(Forked(run, folder, said / str(number), meet | sizes | own))
    return [process.ended() for process in processes]
