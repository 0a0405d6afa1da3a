"""What `up` left running: a record on disk that `status` reads and `down` clears.

Role: one folder for each named development environment, under the user's state folder, with the data
of what runs in it and a list of its processes: process ids with start times, so that a number that was
given to somebody else's process meanwhile is never signalled.

Boundary: records and stops processes of any kind; knows nothing of what they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from almoner_dev.certificates import write_private
from almoner_dev.processes import Child, ProcessId

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
PROCESSES_MAX = 256
STOP_SECONDS = 10.0


class StateError(RuntimeError):
    """The record cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Recorded:
    """A detached process that an environment owns."""

    name: str
    pid: int
    started: str
    first_signal: int
    log: str

    @property
    def identity(self) -> ProcessId:
        """Its process id, safe against being reused."""
        return ProcessId(self.pid, self.started)

    def running(self) -> bool:
        """Says whether it still runs."""
        return self.identity.alive()


class Environment:
    """A named development environment: its folder, its processes, and facts about it such as addresses."""

    def __init__(self, name: str = "default", *, environ: Mapping[str, str] = os.environ) -> None:
        if not NAME_PATTERN.fullmatch(name):
            raise StateError(f"name: {name!r} is no environment's name; use up to 40 of a-z, 0-9 and -")
        home = environ.get("XDG_STATE_HOME") or str(Path(environ.get("HOME", "~")).expanduser() / ".local" / "state")
        self.name = name
        self.directory = Path(home) / "almoner" / "dev" / name

    @property
    def _file(self) -> Path:
        return self.directory / "state.json"

    def exists(self) -> bool:
        """Says whether anything was recorded and not cleared since."""
        return self._file.exists()

    def processes(self) -> list[Recorded]:
        """Returns the recorded processes, in the order they were started, running or not."""
        return [Recorded(**each) for each in self._read()["processes"]]

    def facts(self) -> dict[str, Any]:
        """Returns what was noted about the environment."""
        facts: dict[str, Any] = self._read()["facts"]
        return facts

    def record(self, child: Child) -> None:
        """Notes a detached child, in place of an earlier one of the same name that has ended."""
        fresh = Recorded(child.name, child.pid, child.identity.started, int(child.first_signal), str(child.log_path))
        with self._changing() as state:
            kept = [each for each in state["processes"] if each["name"] != fresh.name or Recorded(**each).running()]
            if len(kept) >= PROCESSES_MAX:
                raise StateError(f"environment {self.name} has {len(kept)} processes already; run down first")
            state["processes"] = [*kept, asdict(fresh)]

    def note(self, **facts: Any) -> None:
        """Notes facts about the environment: JSON values, no secrets."""
        with self._changing() as state:
            state["facts"].update(facts)

    def stop(self) -> list[str]:
        """Stops every recorded process that still runs, last started first; returns their names."""
        stopped = []
        for each in reversed(self.processes()):
            if each.running():
                each.identity.stop(deadline_s=STOP_SECONDS, first=each.first_signal)
                stopped.append(each.name)
        with self._changing() as state:
            state["processes"] = [each for each in state["processes"] if Recorded(**each).running()]
        return stopped

    def remove(self) -> None:
        """Removes the environment's folder, data and logs included. Stop its processes first."""
        running = [each.name for each in self.processes() if each.running()]
        if running:
            raise StateError(f"environment {self.name} still runs {', '.join(running)}")
        if self.exists():  # Only a folder that is ours.
            shutil.rmtree(self.directory)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other `up` and `down` commands out of this environment; raises StateError when one is at work."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with (self.directory.parent / f".{self.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateError(f"another command is at work on environment {self.name}; try again later") from error
            yield

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {"processes": [], "facts": {}}
        except ValueError as error:
            raise StateError(f"{self._file} is damaged: stop what it names by hand and remove it") from error
        return {"processes": list(state["processes"]), "facts": dict(state["facts"])}

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / ".state.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._read()
            yield state
            write_private(self._file, json.dumps(state, indent=1).encode())


def environments(environ: Mapping[str, str] = os.environ) -> list[Environment]:
    """Returns every environment that was recorded and not cleared since, by name."""
    root = Environment(environ=environ).directory.parent
    names = sorted(path.parent.name for path in root.glob("*/state.json"))
    return [Environment(name, environ=environ) for name in names]
