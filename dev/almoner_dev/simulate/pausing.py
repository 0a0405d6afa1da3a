"""Processes that stand still for a while, as SIGSTOP, a suspended virtual machine or a long pause of the machine do it.

Role: what runs in a process of the world carries it in its context; while the process is paused, nothing of it runs,
and what became due runs when it goes on, late, on clocks that went on meanwhile. Its disk may be full, too.
Boundary: who is paused, when and for how long is the world's; the event loop asks here before it runs anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, TypeVar

T = TypeVar("T")

_PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)


class Process:
    """One process of the world. Everything that is started within it stands still while it is paused."""

    def __init__(self) -> None:
        self.paused = False
        self.disk_full = False
        self._due: list[tuple[Callable[..., object], tuple[Any, ...], Context]] = []

    def pause(self) -> None:
        """Let nothing of it run until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Run what became due, in the order in which it did; then go on as usual."""
        self.paused = False
        due, self._due = self._due, []
        loop = asyncio.get_running_loop()
        for callback, arguments, context in due:
            loop.call_soon(callback, *arguments, context=context)

    def free_disk(self) -> None:
        """Let its files be written again."""
        self.disk_full = False

    def run(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Run a callback of this process now, or when it goes on."""
        if self.paused:
            self._due.append((callback, arguments, copy_context()))
        else:
            callback(*arguments)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Start tasks within the process."""
        token = _PROCESS.set(self)
        try:
            yield
        finally:
            _PROCESS.reset(token)

    def task(self, work: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """Start a task within the process."""
        with self.inside():
            return asyncio.create_task(work, name=name)


def current(context: Context | None) -> Process | None:
    """Give the process that a context belongs to; the running code's without one."""
    return _PROCESS.get() if context is None else context.get(_PROCESS)


def outside(
    work: Coroutine[Any, Any, T], done: Callable[[asyncio.Task[T]], object] | None = None, name: str | None = None
) -> asyncio.Task[T]:
    """Start a task of the world itself, from within a process; `done` is called at its end, whoever is paused."""
    token = _PROCESS.set(None)
    try:
        task = asyncio.create_task(work, name=name)
        if done is not None:
            task.add_done_callback(done)
    finally:
        _PROCESS.reset(token)
    return task


class Disk:
    """Stands for the module `os` where files are written: a process whose disk is full writes a part, or nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def write(descriptor: int, data: bytes | memoryview) -> int:
        """Write as `os.write` does. Raises OSError where the disk is full."""
        process = _PROCESS.get()
        if process is None or not process.disk_full:
            return os.write(descriptor, data)
        if len(data) % 3 == 0:
            # The last free bytes of the disk: a write may be cut anywhere.
            return os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
