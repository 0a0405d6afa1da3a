"""The demo's manifests: read from examples/demo, with the local model's address and key put in.

Role: files to objects, in the order in which they are applied. Boundary: reads files, applies nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).resolve().parents[3] / "examples" / "demo"
NAMESPACE: Final = "demo"
EXPECT_LABEL: Final = "demo.almoner.dev/expect"  # the phase that an object must end in; absent where money decides
_PLACEHOLDER: Final = re.compile(r"\$\{([A-Z_]+)\}")


class ManifestError(ValueError):
    """A manifest has a placeholder that nobody fills; the message names file and placeholder."""


def load(values: Mapping[str, str], folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Give every object, file by file in the order of their names. Raises ManifestError."""
    objects: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.yaml")):
        text = _PLACEHOLDER.sub(lambda match, name=path.name: _value(match[1], values, name), path.read_text("utf-8"))  # type: ignore[misc]
        objects.extend(document for document in yaml.safe_load_all(text) if document)
    return objects


def _value(placeholder: str, values: Mapping[str, str], file: str) -> str:
    try:
        return values[placeholder]
    except KeyError:
        raise ManifestError(f"{file}: nothing is known for ${{{placeholder}}}; known: {', '.join(values)}") from None


def expected_phases(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Give the phase that each labelled object must end in, by its name."""
    return {
        document["metadata"]["name"]: label
        for document in objects
        if (label := document["metadata"].get("labels", {}).get(EXPECT_LABEL))
    }
