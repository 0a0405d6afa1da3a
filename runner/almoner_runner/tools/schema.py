"""Checks of a value against a JSON Schema, for tools' arguments, structured output and guardrails.

Role: one validator for all three, with messages that a model can act upon. Boundary: it never fetches a `$ref` from
anywhere, which the library would do by default: schemas come from manifests. Why bounded: a wrong answer can break a
schema in a thousand places, and three of them are enough to mend it.
"""

from __future__ import annotations

from typing import Any, Final

import jsonschema
import referencing

MESSAGES_MAX: Final = 3
MESSAGE_CHARS_MAX: Final = 200


class SchemaError(ValueError):
    """The schema itself is not a JSON Schema that can be used; the message says where."""


class Schema:
    """A JSON Schema (draft 2020-12), checked once, used often. Raises SchemaError where it is none."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        try:
            jsonschema.Draft202012Validator.check_schema(document)
        except jsonschema.SchemaError as error:
            raise SchemaError(f"at {_path(error)}: {error.message[:MESSAGE_CHARS_MAX]}") from error
        self._validator = jsonschema.Draft202012Validator(document, registry=referencing.Registry())

    def problems(self, value: Any) -> list[str]:
        """Give what is wrong with the value, at most three messages that name the place; empty where nothing is.

        Raises SchemaError for a `$ref` that leads nowhere.
        """
        found: list[str] = []
        try:
            for error in self._validator.iter_errors(value):
                found.append(f"{_path(error)}: {error.message[:MESSAGE_CHARS_MAX]}")
                if len(found) == MESSAGES_MAX:
                    break
        except referencing.exceptions.Unresolvable as error:
            raise SchemaError(f"$ref {error.ref!r} leads nowhere; only references within the schema work") from error
        return found


def _path(error: jsonschema.ValidationError | jsonschema.SchemaError) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
