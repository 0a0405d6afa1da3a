"""The files that meter and agent share: input written, output read, and the last word.

The output's folder belongs to the agent, which nobody trusts: whatever lies there is opened without following links and
without waiting, and is read only if it is a regular file with one name.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from almoner_core.environment import OUTPUT_BYTES_MAX, TERMINATION_MESSAGE_BYTES_MAX, OutputProblem
from almoner_core.text import short_bytes, whole

INPUT_BYTES_MAX: Final = 1024 * 1024
ERROR_BYTES_MAX: Final = 640  # as JSON, were every byte escaped, still within a termination message


class OutputError(ValueError):
    """What lies at the output's place is not read; the message says why."""

    def __init__(self, problem: OutputProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Output:
    """The agent's output as text; undecodable bytes are replaced (`decoded` is false then). `size` is the file's."""

    content: str
    truncated: bool
    size: int
    decoded: bool


def read_input(text: str | None, source: Path | None) -> bytes:
    """Give the run's input: the text as it is, or the mounted file's bytes. Raises OSError, ValueError."""
    if source is None:
        return (text or "").encode()
    with source.open("rb") as file:
        data = file.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        raise ValueError(f"the input file is larger than {INPUT_BYTES_MAX} bytes")
    return data


def write_input(path: Path, data: bytes) -> None:
    """Write the input where the agent reads it: whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.new")
    fd = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with os.fdopen(fd, "wb") as file:
        # The agent is another user of the shared group; the process's umask is not its business.
        os.fchmod(fd, 0o644)
        file.write(data)
    scratch.replace(path)


def read_output(path: Path) -> Output | None:
    """Read the agent's output once; None where there is none. Raises OutputError, OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A link, a socket, a path through a file: no regular file; anything else (EACCES, EIO) is a failure to read.
        odd = error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EISDIR)
        problem = OutputProblem.NOT_REGULAR if odd else OutputProblem.UNREADABLE
        raise OutputError(problem, f"the output cannot be opened: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OutputError(OutputProblem.NOT_REGULAR, "the output is not a regular file")
        if found.st_nlink != 1:
            raise OutputError(OutputProblem.NOT_REGULAR, "the output has more than one link")
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(OUTPUT_BYTES_MAX + 1)
    finally:
        os.close(fd)
    truncated = len(data) > OUTPUT_BYTES_MAX
    if truncated:
        # A character that the cut splits is not the agent's fault.
        return Output(whole(data[:OUTPUT_BYTES_MAX]), truncated=True, size=max(found.st_size, len(data)), decoded=True)
    try:
        return Output(data.decode("utf-8"), truncated=False, size=len(data), decoded=True)
    except UnicodeDecodeError:
        return Output(data.decode("utf-8", "replace"), truncated=False, size=len(data), decoded=False)


def write_last_word(path: Path, message: bytes) -> None:
    """Write the termination message, cut to what Kubernetes keeps. Raises OSError."""
    path.write_bytes(message[:TERMINATION_MESSAGE_BYTES_MAX])


def write_error(path: Path, message: str) -> None:
    """Write why the meter gave up as its last word, as whole JSON. Raises OSError."""
    word = {"error": short_bytes(message, ERROR_BYTES_MAX)}
    write_last_word(path, json.dumps(word, ensure_ascii=False).encode())
