"""Which versions of Kubernetes are supported: the one place that knows it. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MINIMUM: Final = (1, 30)
"""Older ones lack what the chart and the definitions use: ValidatingAdmissionPolicy, `selectableFields`."""
TESTED: Final = ((1, 34),)
"""Those that the tests run on."""


class Problem(NamedTuple):
    """What is to be said of a version."""

    too_old: bool
    says: str
    fix: str


def problem(text: str) -> Problem | None:
    """Judge a version such as v1.34.4-eks-1; None where the tests run on that one or one between."""
    found = re.match(r"v?(\d+)\.(\d+)", text)
    if found is None:
        return Problem(
            too_old=False, says=f"its version {text!r} is not known", fix="see docs/install.md, `Kubernetes`"
        )
    version, oldest = (int(found[1]), int(found[2])), ".".join(map(str, MINIMUM))
    if version < MINIMUM:
        return Problem(too_old=True, says=f"{text} is too old", fix=f"upgrade it to {oldest} or newer")
    newest = max(TESTED)
    if version > newest:
        return Problem(
            too_old=False,
            says=f"{text} is newer than what was tested ({newest[0]}.{newest[1]})",
            fix="look for a newer version of Almoner",
        )
    return None
