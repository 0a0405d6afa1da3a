"""The log of changes of the cluster's configuration: what the operator observes, and what people read of it.

Instants are Unix milliseconds. Specs are canonical JSON texts, as `almoner_core.configuration` writes them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from almoner_core.configuration import (
    MANAGERS_MAX,
    NAME_CHARS_MAX,
    PATH_CHARS_MAX,
    PATHS_MAX,
    SPEC_CHARS_MAX,
)
from almoner_core.wire.common import BIGINT_MAX, Error, Id, Name, WireModel

OBSERVED_MAX = 50

Instant = Annotated[int, Field(ge=0, le=BIGINT_MAX)]
Uid = Annotated[str, Field(min_length=1, max_length=64)]


class FieldManager(WireModel):
    """A field manager of an object's spec: what the client called itself; `Apply` or `Update`; since when."""

    name: Annotated[str, Field(max_length=NAME_CHARS_MAX)]
    operation: Annotated[str, Field(max_length=16)]
    changed_unix_ms: Instant | None = None


class ManagedSpec(FieldManager):
    """A field manager, and the paths of the spec that it owns."""

    paths: Annotated[list[Annotated[str, Field(max_length=PATH_CHARS_MAX)]], Field(max_length=PATHS_MAX)] = []


class ObservedObject(WireModel):
    """An object as it is now. `spec` None: it was deleted. `namespace` is empty for what is the cluster's."""

    kind: Annotated[str, Field(min_length=1, max_length=64)]
    namespace: Annotated[str, Field(max_length=253)] = ""
    name: Name
    uid: Uid
    generation: Annotated[int, Field(ge=0, le=BIGINT_MAX)]
    created_unix_ms: Instant | None = None
    spec: Annotated[str, Field(max_length=SPEC_CHARS_MAX)] | None = None
    managers: Annotated[list[ManagedSpec], Field(max_length=MANAGERS_MAX)] = []


class ObserveObjects(WireModel):
    """Objects that changed, in the order in which they did. What is known already is no change, however often told."""

    epoch: int = Field(ge=1)
    operation_id: Id
    objects: Annotated[list[ObservedObject], Field(min_length=1, max_length=OBSERVED_MAX)]


class RefusedObject(WireModel):
    """An object that cannot be taken in, by its place in the message."""

    index: int = Field(ge=0)
    error: Error


class Observed(WireModel):
    """How many changes were entered, and what was refused."""

    changes: int
    refused: list[RefusedObject] = []


class KnownObject(WireModel):
    """An object that the ledger has the last spec of; `digest` is the SHA-256 of the text."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    digest: str


class KnownObjects(WireModel):
    """Objects that are there, by uid. `next`: what the next call gives as `after`."""

    objects: list[KnownObject]
    next: str | None = None


class FieldChange(WireModel):
    """One field of a spec: its values as JSON, cut where they are long; None: it was not there."""

    path: str
    before: str | None
    after: str | None


class ConfigurationChange(WireModel):
    """A change of a limit, a price or a provider.

    `action`: created; found (it was there before the ledger knew of it); changed; deleted. `managers` are those that
    own what changed, by `metadata.managedFields`: names that clients gave themselves. `changed_unix_ms` is when, by the
    API server's clock, as far as it says; `seen_unix_ms` when the ledger entered it.
    """

    number: int
    kind: str
    namespace: str
    name: str
    uid: str
    action: str
    generation: int
    changed_unix_ms: int | None
    seen_unix_ms: int
    managers: list[FieldManager]
    fields: list[FieldChange]
    fields_left_out: int = Field(description="How many more fields changed.")
    before_sha256: str | None = Field(description="SHA-256 of the whole spec before.")
    after_sha256: str | None


class ConfigurationChanges(WireModel):
    """Changes, the newest first."""

    changes: list[ConfigurationChange]
    next: str | None = None
