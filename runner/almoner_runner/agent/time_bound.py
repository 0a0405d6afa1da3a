"""An end to checks that take too long.

Role: a schema from a manifest can be followed in exponentially many ways; such a check must end the run, not hang it
until its timeout. Boundary: an alarm signal, which interrupts Python code in the main thread, where the loop runs;
elsewhere nothing is bounded.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from almoner_runner.agent.failures import invalid_input

CHECK_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 0.5


@contextmanager
def time_bound(what: str, seconds: float = CHECK_SECONDS) -> Iterator[None]:
    """Interrupt what is inside after so many seconds. Raises AgentFailure (INVALID_INPUT)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_number: int, _frame: object) -> NoReturn:
        raise invalid_input(f"{what}: the check takes longer than {seconds:g} seconds: simplify its schema")

    before = signal.signal(signal.SIGALRM, give_up)
    # Again and again: what is raised in a finalizer, where the first alarm may find the program, goes nowhere.
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
