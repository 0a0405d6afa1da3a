"""What goes wrong in one schedule, how often, and how often it did: drawn from the seed.

Role: a schedule's character. Some are quiet, some lose every third message, some kill someone every few seconds, so
that over many schedules faults meet each other in many ways. Boundary: says when; what happens is others' business.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Faults:
    """A schedule's rates: of messages (0 to 1), of transactions (0 to 1), of kills (mean virtual seconds between)."""

    chance: random.Random
    request_lost: float = 0.0
    answer_lost: float = 0.0
    doubled: float = 0.0
    delayed: float = 0.0
    delay_longest_s: float = 20.0
    statement_fails: float = 0.0
    commit_unknown: float = 0.0
    killed_in_transaction: float = 0.0
    meter_killed_every_s: float = 0.0
    meter_cut_off_every_s: float = 0.0
    replica_killed_every_s: float = 0.0
    database_killed_every_s: float = 0.0
    process_paused_every_s: float = 0.0
    replica_paused_every_s: float = 0.0
    disk_full_every_s: float = 0.0
    ledger_away_every_s: float = 0.0
    clock_jumps_every_s: float = 0.0
    leader_changes_every_s: float = 0.0
    operators_away_every_s: float = 0.0
    limits_change_every_s: float = 0.0
    pod_vanishes: float = 0.0
    pod_never_starts: float = 0.0
    poisoned_limits: float = 0.0
    provider_silent: float = 0.0
    provider_errors: float = 0.0
    overbills: float = 0.0
    database_full_every_s: float = 0.0
    statement_finds_no_room: float = 0.5
    """Of the writing statements while the database's disk is full: now and then there is room again for a moment."""
    happened: Counter[str] = field(default_factory=Counter)
    active: bool = True

    @classmethod
    def drawn(cls, chance: random.Random) -> Faults:
        """Draw a schedule's character: each kind is absent, rare or frequent."""

        def rate(*rates: float) -> float:
            return chance.choice((0.0, *rates))

        return cls(
            chance=chance,
            request_lost=rate(0.02, 0.15),
            answer_lost=rate(0.02, 0.15),
            doubled=rate(0.05, 0.3),
            delayed=rate(0.05, 0.3),
            delay_longest_s=chance.choice((1.0, 15.0, 90.0)),
            statement_fails=rate(0.002, 0.01),
            commit_unknown=rate(0.01, 0.1),
            killed_in_transaction=rate(0.005, 0.03),
            meter_killed_every_s=rate(10.0, 40.0),
            meter_cut_off_every_s=rate(30.0, 90.0),
            replica_killed_every_s=rate(10.0, 40.0),
            database_killed_every_s=rate(40.0, 120.0),
            process_paused_every_s=rate(10.0, 40.0),
            replica_paused_every_s=rate(20.0, 60.0),
            disk_full_every_s=rate(20.0, 60.0),
            ledger_away_every_s=rate(60.0),
            clock_jumps_every_s=rate(15.0, 60.0),
            leader_changes_every_s=rate(20.0, 60.0),
            operators_away_every_s=rate(60.0),
            limits_change_every_s=rate(5.0, 20.0),
            pod_vanishes=rate(0.1, 0.3),
            pod_never_starts=rate(0.1),
            poisoned_limits=rate(0.3),
            provider_silent=rate(0.05, 0.2),
            provider_errors=rate(0.05, 0.2),
            # Seldom: where a provider bills above bounds, excess is expected, and hides what would be one.
            overbills=chance.choice((0.0, 0.0, 0.0, 0.0, 0.05)),
            database_full_every_s=rate(30.0, 90.0),
        )

    def strikes(self, kind: str) -> bool:
        """Say whether a fault whose rate is a probability happens now, and count it."""
        probability: float = getattr(self, kind)
        if not self.active or probability == 0.0 or self.chance.random() >= probability:
            return False
        self.happened[kind] += 1
        return True

    def pause(self, kind: str) -> float | None:
        """Give the virtual seconds to the next fault of a kind that comes now and then; None: it never does."""
        mean: float = getattr(self, kind)
        return None if mean == 0.0 else self.chance.expovariate(1 / mean)

    def note(self, kind: str) -> None:
        """Count a fault."""
        self.happened[kind] += 1
