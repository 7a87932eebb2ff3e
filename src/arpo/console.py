"""What both command lines share: exit codes that tell the truth, one-line errors, orderly ends on signals."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

import typer

from arpo.protocol.problems import ArpoError, ConfigError
from arpo.signals import answered

EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM
EXIT_RESUME = 75
"""EX_TEMPFAIL of sysexits.h: SIGTERM stopped a command that the same command continues."""

T = TypeVar("T")


class Failed(ArpoError):  # noqa: N818 - an answer, not an error
    """The command ran to its end and the answer is no; the message says why."""


class Terminated(BaseException):
    """SIGTERM arrived and everything has been released."""


class Stopped(BaseException):
    """A signal ended a command that can go on; the message is its last line, `code` its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine; SIGTERM cancels it (as Ctrl-C does under `asyncio.run`). Raises Terminated once it has ended.
    Afterwards SIGTERM does what it did before.

    A second SIGTERM changes nothing: what is being released has time limits of its own.
    """
    task = asyncio.ensure_future(work)
    terminated = False

    def terminate(_: signal.Signals) -> None:
        nonlocal terminated
        if not terminated:
            terminated = True
            task.cancel()

    with answered([signal.SIGTERM], terminate):
        try:
            return await task
        except asyncio.CancelledError:
            if terminated:
                raise Terminated from None
            raise


def run_app(app: typer.Typer) -> NoReturn:
    """Run a typer application and exit. Anything unforeseen keeps its traceback and exits with 1, never 0."""
    try:
        code = app(standalone_mode=False)
    except typer.TyperException as error:
        _end(f"error: {error.format_message()} (see --help)", EXIT_CONFIG)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except Terminated:
        _end("terminated", EXIT_TERMINATED)
    except Stopped as stopped:
        _end(str(stopped), stopped.code)
    except (ArpoError, BaseExceptionGroup) as error:
        known = _first_known(error)
        if known is None:
            raise
        _end(f"error: {known}", EXIT_CONFIG if isinstance(known, ConfigError) else EXIT_FAILED)
    if code == EXIT_INTERRUPTED:  # typer too makes this of Ctrl-C, without a word
        _end("stopped", EXIT_INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _first_known(error: BaseException) -> ArpoError | None:
    """The typed error behind an exception; task groups wrap theirs in groups. None when any of it is unforeseen."""
    if isinstance(error, ArpoError):
        return error
    if isinstance(error, BaseExceptionGroup):
        known = [_first_known(inner) for inner in error.exceptions]
        return known[0] if all(known) else None
    return None


def _end(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
