"""The routes of the ledger's HTTP API, as a table: the service and the OpenAPI document are both made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from almoner_core import wire
from almoner_core.wire import BODY_BYTES_MAX, ErrorAnswer, WireModel
from almoner_ledger.auth import Role
from almoner_ledger.history import asking
from almoner_ledger.history.usage import ORDERS
from almoner_ledger.people import COSTS_BY
from almoner_ledger.store.commands import Done

OUTPUT_BODY_BYTES_MAX: Final = 7 * 1024 * 1024
"""A mebibyte of characters may take six bytes each as JSON escapes."""


FOR_PEOPLE: Final = (
    "For whoever may {} in the namespaces that are asked about: those of `namespace`, or of "
    "agents and executions that are written with their namespace; else all. Any token of the API server will do."
)


def _for_people(route: Route) -> str:
    changes = route.answer is wire.ConfigurationChanges
    return FOR_PEOPLE.format("`get` the resources of the kinds" if changes else "`get executions.almoner.dev`")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One query parameter."""

    name: str
    schema: dict[str, Any]
    description: str


@dataclass(frozen=True, slots=True)
class Route:
    """One call: who may make it (`role` None: anyone), what it takes and what it answers.

    `handler` names a method of the service. `answer` None: not JSON.
    """

    method: str
    path: str
    handler: str
    summary: str
    role: Role | None = None
    body: type[WireModel] | None = None
    answer: type[WireModel] | None = None
    parameters: tuple[Parameter, ...] = ()
    body_bytes_max: int = BODY_BYTES_MAX
    long_poll: bool = False


def _integer(name: str, description: str, default: int, most: int) -> Parameter:
    return Parameter(name, {"type": "integer", "minimum": 0, "maximum": most, "default": default}, description)


_TIMEOUT = _integer("timeout_seconds", "Seconds to wait for news.", 0, 55)
_LIMIT = _integer("limit", "Most items in the answer.", 500, 1000)
_AFTER = Parameter("after", {"type": "string"}, "The last page's `next`.")
_PAGE = (_integer("limit", "Most items in the answer.", 500, wire.PAGE_ITEMS_MAX), _AFTER)
_MOMENT: Final = {"type": "string"}
_TIMES = (
    Parameter("from", _MOMENT, "First day (UTC) such as 2026-01-31, or an instant such as 2026-01-31T12:00:00Z."),
    Parameter("to", _MOMENT, "Last day (UTC), included, or an instant, not included."),
)


def _filters(names: tuple[asking.By, ...]) -> tuple[Parameter, ...]:
    return tuple(
        Parameter(
            name.value,
            {"type": "array", "items": _value(name), "maxItems": asking.VALUES_MAX},
            "Only these; repeat it for alternatives."
            + (" `name` or `namespace/name`." if name in asking.QUALIFIED else ""),
        )
        for name in names
    )


def _value(name: asking.By) -> dict[str, Any]:
    choices = asking.CHOICES.get(name)
    return {"type": "string", "maxLength": asking.VALUE_CHARS_MAX} if choices is None else {"enum": [*choices]}


ROUTES: Final[tuple[Route, ...]] = (
    Route("POST", "/v1/epochs", "command", "Take an epoch", Role.OPERATOR, wire.TakeEpoch, wire.Epoch),
    Route(
        "POST",
        "/v1/accounts:update",
        "update_accounts",
        "Put limits in force",
        Role.OPERATOR,
        wire.UpdateAccounts,
        wire.AccountsAnswer,
    ),
    Route("POST", "/v1/allotments:open", "batch", "Open allotments", Role.OPERATOR, wire.OpenBatch, wire.OpenAnswers),
    Route(
        "POST",
        "/v1/allotments:bind",
        "batch",
        "Bind allotments to pods",
        Role.OPERATOR,
        wire.BindBatch,
        wire.BatchAnswer,
    ),
    Route(
        "POST",
        "/v1/allotments:void",
        "batch",
        "Void allotments that were never activated",
        Role.OPERATOR,
        wire.CloseBatch,
        wire.BatchAnswer,
    ),
    Route(
        "POST",
        "/v1/allotments:close",
        "batch",
        "Close allotments whose pods are gone",
        Role.OPERATOR,
        wire.CloseBatch,
        wire.BatchAnswer,
    ),
    Route(
        "POST",
        "/v1/allotments:accrue",
        "batch",
        "Accrue machine time",
        Role.OPERATOR,
        wire.AccrueBatch,
        wire.BatchAnswer,
    ),
    Route(
        "GET",
        "/v1/allotments",
        "list_allotments",
        "Open allotments",
        Role.OPERATOR,
        answer=wire.AllotmentPage,
        parameters=(
            Parameter("state", {"type": "string", "enum": ["open"], "default": "open"}, "Which allotments."),
            Parameter("after", {"type": "string", "default": ""}, "The last page's `next`."),
            _LIMIT,
        ),
    ),
    Route(
        "GET",
        "/v1/changes",
        "changes",
        "Totals that changed",
        Role.OPERATOR,
        answer=wire.Changes,
        parameters=(_integer("after", "The last answer's `after`; 0 at first.", 0, wire.BIGINT_MAX), _TIMEOUT, _LIMIT),
        long_poll=True,
    ),
    Route(
        "POST",
        "/v1/allotments/{id}/activate",
        "command",
        "Take one's allotment",
        Role.METER,
        wire.Activate,
        wire.Activated,
    ),
    Route("POST", "/v1/allotments/{id}/extend", "command", "Ask for more", Role.METER, wire.Extend, wire.Extended),
    Route("POST", "/v1/allotments/{id}/records", "command", "Post records", Role.METER, wire.PostRecords, wire.Posted),
    Route("POST", "/v1/allotments/{id}/return", "command", "Give back", Role.METER, wire.Return, wire.Returned),
    Route(
        "PUT",
        "/v1/allotments/{id}/output",
        "command",
        "Hand over the output",
        Role.METER,
        wire.PutOutput,
        Done,
        body_bytes_max=OUTPUT_BODY_BYTES_MAX,
    ),
    Route("POST", "/v1/allotments/{id}/progress", "command", "Report progress", Role.METER, wire.PostProgress, Done),
    Route(
        "POST",
        "/v1/allotments/{id}/keys",
        "keys",
        "Ask for keys of providers, over TLS or within one machine",
        Role.METER,
        wire.AskKeys,
        wire.HandedKeys,
    ),
    Route(
        "GET",
        "/v1/allotments/{id}/signals",
        "signals",
        "What is wanted of the meter",
        Role.METER,
        answer=wire.Signals,
        parameters=(
            _TIMEOUT,
            Parameter(
                "paid",
                {"type": "integer", "minimum": 0, "maximum": 1, "default": 0},
                "1: tell for how long the machine time of this pod is paid, and keep it so as long as there is room.",
            ),
        ),
        long_poll=True,
    ),
    Route(
        "GET",
        "/v1/usage",
        "ask",
        "What was used, summed by up to three dimensions",
        Role.READER,
        answer=wire.UsagePage,
        parameters=(
            Parameter(
                "by",
                {"type": "string", "default": "agent"},
                f"One to three of {', '.join(wire.UsageBy)}, with commas between them.",
            ),
            *_TIMES,
            *_filters(asking.OF_USAGE),
            Parameter(
                "order",
                {"type": "string", "enum": [*ORDERS]},
                "`key`: by the groups, the usual order where they have a time; else the largest of a sum first.",
            ),
            *_PAGE,
        ),
    ),
    Route(
        "GET",
        "/v1/executions",
        "ask",
        "The history of executions, deleted ones too",
        Role.READER,
        answer=wire.ExecutionPage,
        parameters=(*_TIMES, *_filters(asking.OF_EXECUTIONS), *_PAGE),
    ),
    Route(
        "GET",
        "/v1/records",
        "ask",
        "Entries one by one, without content",
        Role.READER,
        answer=wire.EntryPage,
        parameters=(*_TIMES, *_filters(asking.OF_USAGE), *_PAGE),
    ),
    Route(
        "GET",
        "/v1/costs",
        "ask",
        "What was spent",
        Role.READER,
        answer=wire.Costs,
        parameters=(
            Parameter("by", {"type": "string", "enum": [*COSTS_BY], "default": "agent"}, "Grouping."),
            *_TIMES,
            _LIMIT,
        ),
    ),
    Route(
        "GET",
        "/v1/executions/{uid}/output",
        "output",
        "An execution's output",
        Role.READER,
        parameters=(
            Parameter("namespace", {"type": "string", "maxLength": 253}, "The namespace that it has to be in."),
        ),
    ),
    Route(
        "POST",
        "/v1/configuration:observe",
        "observe",
        "Tell of objects of the configuration that changed",
        Role.OPERATOR,
        wire.ObserveObjects,
        wire.Observed,
    ),
    Route(
        "GET",
        "/v1/configuration",
        "known_configuration",
        "What objects of the configuration the ledger knows",
        Role.OPERATOR,
        answer=wire.KnownObjects,
        parameters=(Parameter("after", {"type": "string", "default": ""}, "The last page's `next`."), _LIMIT),
    ),
    Route(
        "GET",
        "/v1/audit/changes",
        "ask",
        "Who changed which limit, price or provider, when, from what to what",
        Role.READER,
        answer=wire.ConfigurationChanges,
        parameters=(*_TIMES, *_filters(asking.OF_CHANGES), *_PAGE),
    ),
    Route("GET", "/healthz", "healthz", "Whether the process lives"),
    Route("GET", "/readyz", "readyz", "Whether the database answers and takes writes"),
    Route("GET", "/metrics", "metrics", "Metrics for Prometheus"),
    Route("GET", "/openapi.json", "openapi", "This document"),
)


def openapi(version: str) -> dict[str, Any]:
    """Make the OpenAPI 3.1 document of the routes."""
    models: set[type[BaseModel]] = {ErrorAnswer}
    models.update(model for route in ROUTES for model in (route.body, route.answer) if model is not None)
    ordered = sorted(models, key=lambda model: model.__name__)
    _, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Almoner ledger", "version": version, "description": (wire.__doc__ or "").strip()},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    content = (
        {"application/json": {"schema": _reference(route.answer)}} if route.answer is not None else {"text/plain": {}}
    )
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "Done.", "content": content},
            "default": {
                "description": "Refused, by name.",
                "content": {"application/json": {"schema": _reference(ErrorAnswer)}},
            },
        },
        "security": [{"token": []}] if route.role is not None else [],
    }
    if route.role is not None:
        operation["description"] = (
            _for_people(route) if route.role is Role.READER else f"For the role {route.role.value}."
        )
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(route.body)}},
        }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("id", "uid")
        if f"{{{name}}}" in route.path
    ]
    parameters += [
        {"name": each.name, "in": "query", "schema": each.schema, "description": each.description}
        for each in route.parameters
    ]
    if parameters:
        operation["parameters"] = parameters
    return operation


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
