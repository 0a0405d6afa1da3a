"""The meter's last word: what it tells the operator through the pod's status, where the ledger may not have heard it.

Role: totals over all records (the second witness besides the ledger), what became of the output, and as much of an
output that the ledger does not have as fits. The operator reads it (almoner_core.last_word is its contract) and settles
from it what never reached the ledger. It is written before the last exchanges, and again after them: a meter that is
killed while it waits for the ledger has said it all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from almoner_core.environment import TERMINATION_MESSAGE_BYTES_MAX, OutputProblem
from almoner_core.refusals import MESSAGE_CHARS_MAX, ProviderRefused, Refused
from almoner_core.text import short
from almoner_runner.meter.files import OutputError, read_output
from almoner_runner.meter.ledger import BODY_BYTES_MAX
from almoner_runner.meter.spool import Spool

VERSION: Final = 1
ERROR_CHARS_MAX: Final = 512
DETAIL_CHARS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class LastOutput:
    """The agent's output at the end. `content` None: there is none, or it is not read (`problem` says why)."""

    content: str | None = None
    size: int = 0
    truncated: bool = False
    problem: OutputProblem | None = None
    detail: str = ""
    stored: bool = False

    def put(self) -> LastOutput:
        """Say that the ledger has it."""
        return replace(self, stored=True)

    def unsent(self, why: str) -> LastOutput:
        """Say that the ledger does not have it, and why."""
        return replace(self, detail=why)


def last_output(path: Path) -> LastOutput:
    """Read the output for the last time. Never raises: what is wrong with it is said."""
    try:
        output = read_output(path)
    except OutputError as error:
        return LastOutput(problem=error.problem, detail=str(error))
    except OSError as error:
        return LastOutput(problem=OutputProblem.UNREADABLE, detail=f"the output cannot be read: {error.strerror}")
    if output is None:
        return LastOutput()
    content, truncated = output.content, output.truncated
    # Control characters grow sixfold in JSON.
    while len(_json(content)) > BODY_BYTES_MAX - 1024:
        content, truncated = content[: len(content) // 2], True
    problem, detail = None, ""
    if truncated:
        problem = OutputProblem.TOO_LARGE
        detail = f"the output has {output.size} bytes: only its beginning is kept"
    elif not output.decoded:
        problem = OutputProblem.NOT_UTF8
        detail = "the output is not UTF-8: what could not be read was replaced"
    return LastOutput(content, output.size, truncated, problem, detail)


def compose(
    allotment: str,
    attempt: int,
    spool: Spool,
    output: LastOutput,
    *,
    final: bool,
    complete: bool,
    rejected: int = 0,
    error: str | None = None,
    unpaid: str | None = None,
    refused: Refused | None = None,
    provider_refused: ProviderRefused | None = None,
) -> bytes:
    """Give the termination message: whole JSON within what Kubernetes keeps.

    `complete`: no call is in flight, so the totals are all there is. `final`: the ledger has it all. `unpaid`: why it
    had the kubelet end the pod, where it did: its machine time was not paid for. `refused`, `provider_refused`: calls
    that were refused, by the meter and by a provider.
    """
    word: dict[str, Any] = {
        "version": VERSION,
        "allotment": allotment,
        "attempt": attempt,
        "last_sequence": spool.sequence,
        "posted": spool.posted,
        "final": final,
        "complete": complete,
        "rejected": rejected,
        "totals": spool.totals.as_dict(),
    }
    if error is not None:
        word["error"] = short(error, ERROR_CHARS_MAX)
    if unpaid is not None:
        word["unpaid"] = short(unpaid, ERROR_CHARS_MAX)
    if refused is not None:
        message = short(refused.message, MESSAGE_CHARS_MAX)
        word["refused"] = {"count": refused.count, "code": refused.code, "message": message, "last": refused.last}
    if provider_refused is not None:
        word["provider_refused"] = {"provider": provider_refused.provider, "status": provider_refused.status}
    told: dict[str, Any] = {"bytes": output.size, "stored": output.stored}
    if output.problem is not None:
        told["problem"] = output.problem.value
    if output.detail:
        told["detail"] = short(output.detail, DETAIL_CHARS_MAX)
    if output.content is not None or output.problem is not None:
        word["output"] = told
    if output.content is not None and not output.stored:
        room = TERMINATION_MESSAGE_BYTES_MAX - len(_json(word)) - len(b',"truncated":false,"content":""')
        told["content"] = _beginning(output.content, room)
        told["truncated"] = output.truncated or len(told["content"]) < len(output.content)
    return _json(word)


def _beginning(text: str, room: int) -> str:
    """The longest beginning whose JSON takes no more than `room` bytes, quotes apart."""
    text = text[: max(0, room)]
    if len(_json(text)) - 2 <= room:
        return text
    fits, over = 0, len(text)
    while over - fits > 1:
        middle = (fits + over) // 2
        fits, over = (middle, over) if len(_json(text[:middle])) - 2 <= room else (fits, middle)
    return text[:fits]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
