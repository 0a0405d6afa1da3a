"""Kubernetes quantities as a field."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from almoner_core.quantity import QUANTITY_PATTERN

Quantity = Annotated[
    str | int,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": QUANTITY_PATTERN,
            "maxLength": 32,
            "minimum": 0,
            "maximum": 999_999_999_999_999,
        }
    ),
]
