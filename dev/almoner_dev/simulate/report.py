"""What a simulation found, schedule by schedule, and its summary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Result:
    """One schedule. `overspent` by dimension (money in nano-dollars); `trace` is the same for the same history."""

    seed: int
    database: str
    overspent: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    violations: list[str] = field(default_factory=list)
    operations: int = 0
    calls: int = 0
    billed_nanos: int = 0
    excess_nanos: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    virtual_seconds: float = 0.0
    seconds: float = 0.0
    trace: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing was overspent or lost, and every invariant held."""
        return not any(self.overspent.values()) and self.lost == 0 and not self.violations

    @property
    def verdict(self) -> str:
        """One line for people."""
        name = f"seed {self.seed} on {self.database}"
        if self.ok:
            return f"{name}: held ({self.calls} calls, {self.operations} messages, {self.seconds:.2f} s)"
        over = {dimension: amount for dimension, amount in self.overspent.items() if amount}
        return f"{name}: FAILED: overspent {over}, lost {self.lost}, {len(self.violations)} violations"


@dataclass(slots=True)
class Summary:
    """All schedules of a run."""

    seed: int
    results: list[Result] = field(default_factory=list)
    bodies: list[Result] = field(default_factory=list)
    """What `bounding` found with the same seeds."""
    seconds: float = 0.0

    @property
    def failed(self) -> list[Result]:
        """The schedules that failed."""
        return [each for each in (*self.results, *self.bodies) if not each.ok]

    @property
    def ok(self) -> bool:
        """Whether every schedule held."""
        return not self.failed

    def _bodies(self) -> dict[str, Any]:
        answers: Counter[str] = sum((each.faults for each in self.bodies), Counter())
        return {
            "overspent_nanos": sum(each.overspent.get("usd", 0) for each in self.bodies),
            "billed_nanos": sum(each.billed_nanos for each in self.bodies),
            "calls": sum(each.calls for each in self.bodies),
            "answers": dict(sorted(answers.items())),
        }

    def to_dict(self) -> dict[str, Any]:
        """Give the summary as the command prints it."""
        faults: Counter[str] = sum((each.faults for each in self.results), Counter())
        other = {
            name: sum(each.overspent.get(name, 0) for each in self.results)
            for name in ("tokens", "tool_calls", "requests")
        }
        return {
            "ok": self.ok,
            "seed": self.seed,
            "schedules": len(self.results),
            "overspent_nanos": sum(each.overspent.get("usd", 0) for each in self.results),
            "overspent_units": other,
            "lost_records": sum(each.lost for each in self.results),
            "violations": [f"seed {each.seed}: {text}" for each in self.failed for text in each.violations],
            "failed_seeds": [each.seed for each in self.failed],
            "databases": dict(sorted(Counter(each.database for each in self.results).items())),
            "calls": sum(each.calls for each in self.results),
            "billed_nanos": sum(each.billed_nanos for each in self.results),
            "excess_nanos_of_overbilling_providers": sum(each.excess_nanos for each in self.results),
            "operations": sum(each.operations for each in self.results),
            "faults": dict(sorted(faults.items())),
            "bodies": self._bodies(),
            "virtual_seconds": round(sum(each.virtual_seconds for each in self.results)),
            "seconds": round(self.seconds, 1),
        }
