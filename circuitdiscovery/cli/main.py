"""The command line. Arguments are checked, and help is given, before torch is imported.

Whatever goes wrong is one line on standard error and exit status 2; Ctrl-C is 130. Set
CIRCUITDISCOVERY_DEBUG=1 for a traceback.
"""

from __future__ import annotations

import _thread
import atexit
import difflib
import gc
import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from threading import Timer
from typing import Any, NoReturn, TextIO, TypeVar, cast

import click

from circuitdiscovery.cli.commands import COMPLETE, PROGRAM, cli, notes_of
from circuitdiscovery.engine import distributed
from circuitdiscovery.errors import CircuitDiscoveryError, printable, shown

T = TypeVar("T")
_AGAIN = 0.01  # seconds until a Ctrl-C that was dropped comes again
_ALLOCATIONS = 100_000  # of objects, from one search for garbage to the next


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    # `kill` is Ctrl-C: the state is kept, the resume command printed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _spare_collections()
    try:
        with _open_streams(), distributed.launched(), _named_output(), _heard_everywhere():
            cli.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    except (click.Abort, KeyboardInterrupt) as stopped:
        if notes := notes_of(stopped.__cause__ or stopped):  # an Abort is click's, of a KeyboardInterrupt
            click.echo(" ".join(["interrupted", *notes]), err=True)
        sys.exit(130)
    except Exception as error:
        if os.environ.get("CIRCUITDISCOVERY_DEBUG"):
            raise
        click.echo(f"{PROGRAM}: {_one_line(error)}", err=True)
        sys.exit(2)
    finally:
        # registered last, so that nothing else that is done at exit is
        # interrupted: all is written, the status is known
        for late in (signal.SIGTERM, signal.SIGINT):
            atexit.register(signal.signal, late, signal.SIG_IGN)
    sys.exit(0)


@contextmanager
def _heard_everywhere() -> Generator[None]:
    """Ctrl-C counts where Python drops it, too: while an object is thrown away that has a `__del__`, it is
    shown as ignored, and the program goes on."""
    before = sys.unraisablehook

    def hook(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # not at once: it would come in this very function, and be dropped as well
            Timer(_AGAIN, _thread.interrupt_main).start()
        else:
            before(dropped)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _open_streams() -> Generator[None]:
    """A standard stream that is closed, as by `2>&-`, is one to nowhere, not the file that is opened next."""
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            if not getattr(sys, name):
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, stack.enter_context(open(os.devnull, "w")))
        yield


@contextmanager
def _named_output() -> Generator[None]:
    """What cannot be written to standard output is an error that names it."""
    before, sys.stdout = sys.stdout, cast(TextIO, _Named(sys.stdout, "standard output"))
    try:
        yield
    finally:
        sys.stdout = before


class _Named:
    """A stream whose errors have a name."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._naming(self._stream.write, text)

    def flush(self) -> None:
        self._naming(self._stream.flush)

    def _naming(self, do: Callable[..., T], *given: str) -> T:
        try:
            return do(*given)
        except OSError as error:
            error.filename = self._name
            raise


def _spare_collections() -> None:
    """Look for garbage seldom, and not at the end.

    Importing torch and transformers makes half a million objects that stay; Python would look through them
    again and again meanwhile, and three times more before it exits, which is a quarter of a short command.
    """
    gc.set_threshold(_ALLOCATIONS)
    if distributed.started() < 2:  # the threads of a group's processes end with what holds them
        atexit.register(gc.freeze)


def _one_line(error: Exception) -> str:
    if isinstance(error, click.NoSuchOption):
        text = _no_option(error)
    elif isinstance(error, click.UsageError):
        text = f"{error.format_message().rstrip('.')}. {_valid(error)}".removesuffix(". ")
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif isinstance(error, CircuitDiscoveryError):
        text = str(error)
    else:  # a mistake of ours, or memory that ran out
        said = " ".join(str(error).split())
        text = f"{type(error).__name__}: {said} (CIRCUITDISCOVERY_DEBUG=1 shows where)"
    notes = [f"; stopped {note}" for note in notes_of(error)]
    return printable("".join([text, *notes]))


def _no_option(error: click.NoSuchOption) -> str:
    """The sentence for an option that there is not."""
    if "completion" in error.option_name:
        shells = ", ".join(COMPLETE.format(shell=shell) for shell in ("bash", "zsh", "fish"))
        return (
            f"no option {error.option_name!r}; these commands print the script that completes words "
            f"in a shell: {shells}"
        )
    params = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    options = [name for param in params for name in param.opts if name.startswith("--")]
    wanted = error.option_name.lstrip("-").replace("_", "-")
    near = difflib.get_close_matches(wanted, [name[2:] for name in options], n=1, cutoff=0.65)
    hint = f"did you mean '--{near[0]}'? " if near else ""
    return f"no option {shown(error.option_name)}; {hint}Valid options: {', '.join(options)}"


def _valid(error: click.UsageError) -> str:
    """What would have been valid, where the message does not say it."""
    context = error.ctx
    if context is None:
        return ""
    if isinstance(context.command, click.Group):
        return "Valid commands: " + ", ".join(context.command.list_commands(context))
    return (
        ""
        if isinstance(error, click.BadParameter) and error.message
        else " ".join(context.get_usage().split())
    )
