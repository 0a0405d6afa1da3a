"""What a check finds: a level, what it is about, what is so, and how to correct it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from almoner_cli.check.cluster import Cluster, DeniedError


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """Worth a look; Almoner works."""
    UNKNOWN = "unknown"
    """Who asks may not look."""
    FAILED = "failed"
    """Almoner does not work, or not wholly."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    about: str
    says: str
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """Give it as it is printed by `-o json`."""
        return {name: str(value) for name, value in asdict(self).items()}

    def lines(self) -> Iterator[str]:
        """Give it as lines for people."""
        yield f"{self.level.upper() if self.level is Level.FAILED else self.level:<8} {self.about}: {self.says}"
        if self.fix:
            yield f"{'':8} fix: {self.fix}"


def ok(about: str, says: str) -> Finding:
    """Give what is in order."""
    return Finding(Level.OK, about, says)


def failed(about: str, says: str, fix: str) -> Finding:
    """Give what has to be corrected."""
    return Finding(Level.FAILED, about, says, fix)


def warning(about: str, says: str, fix: str = "") -> Finding:
    """Give what is worth a look."""
    return Finding(Level.WARNING, about, says, fix)


@dataclass(frozen=True, slots=True)
class Place:
    """Where Almoner is looked for."""

    cluster: Cluster
    namespace: str
    """Of the operator and the ledger."""
    version: str
    """Of this command."""


Look = Callable[[Place], Iterable[Finding]]


def look_at(place: Place, looks: Iterable[tuple[str, Look]]) -> Iterator[Finding]:
    """Look at one thing after the other; what may not be looked at is said, and the rest is looked at all the same.

    Raises ClusterError where the API server does not answer.
    """
    for about, look in looks:
        try:
            yield from look(place)
        except DeniedError as error:
            yield Finding(
                Level.UNKNOWN,
                about,
                f"not looked at: {error}",
                "ask with a kubeconfig that may, such as an administrator's",
            )
