"""A process of the project from its first line to its exit code."""

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from libs.kernel.errors import (
    EXIT_CONFIG_ERROR,
    EXIT_INVARIANT_VIOLATION,
    ConfigError,
    InvariantViolation,
)

PR_SET_PDEATHSIG: Final = 1
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_log = structlog.get_logger(__name__)
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def run_service(
    main: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
    *,
    name: str,
) -> int:
    """Run the coroutine on uvloop until it returns; return the exit code for sys.exit.

    `main` receives an event that is set by the first SIGTERM or SIGINT and should then wind up; a
    second signal ends the process at once. 0 after a graceful stop, 64 for a ConfigError (one line
    on stderr), 70 for an InvariantViolation (logged with its story).
    """
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_until_stopped(main))
    except (ConfigError, InvariantViolation, BaseExceptionGroup) as error:
        return _exit_code(name, error)
    return 0


def die_with_parent(stop_signal: signal.Signals = signal.SIGTERM) -> None:
    """Ask the kernel to send this process the signal when its parent dies; Linux only.

    Also a `preexec_fn` of a child process: nothing is allocated and no lock is taken in it. The
    kernel means the thread that forked: start such children from a thread that lives as long.
    """
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, int(stop_signal), 0, 0, 0)


async def _until_stopped(main: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(stop_signal: signal.Signals) -> None:
        if stopping.is_set():
            os._exit(128 + stop_signal)
        _log.info("stop_requested", signal=stop_signal.name)
        stopping.set()

    for stop_signal in STOP_SIGNALS:
        loop.add_signal_handler(stop_signal, stop, stop_signal)
    try:
        await main(stopping)
    finally:
        for stop_signal in STOP_SIGNALS:
            loop.remove_signal_handler(stop_signal)


def _new_loop() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _exit_code(name: str, error: BaseException) -> int:
    """Report a failure of ours and choose the exit code; what is not ours goes on as it is.

    Of several failures at once, a violated invariant outweighs a mistaken configuration.
    """
    leaves = _leaves(error)
    if any(not isinstance(leaf, (ConfigError, InvariantViolation)) for leaf in leaves):
        raise error
    violations = [leaf for leaf in leaves if isinstance(leaf, InvariantViolation)]
    for violation in violations:
        _log.critical("invariant_violated", service=name, story=str(violation), exc_info=violation)
    if violations:
        return EXIT_INVARIANT_VIOLATION
    for leaf in leaves:
        sys.stderr.write(f"{name}: {leaf}\n")
    return EXIT_CONFIG_ERROR


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for part in error.exceptions for leaf in _leaves(part)]
