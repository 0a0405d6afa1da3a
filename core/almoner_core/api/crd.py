"""Models -> structural schemas -> CustomResourceDefinitions, as plain dictionaries.

Pydantic's JSON schema is not structural: the API server refuses `$ref`, `anyOf` with null, `const`, numeric
exclusive bounds, `prefixItems`, and `additionalProperties` beside `properties`. Everything is rewritten here by name,
and whatever is not known raises, so that no keyword is lost in silence. Pure: `almoner_dev.generate` writes the files.
"""

from __future__ import annotations

from typing import Any, Final

from almoner_core.api.base import GROUP, UNSEEN, VERSION, APIModel
from almoner_core.api.meta import VALIDATIONS, Column, Kind, Rule
from almoner_core.api.registry import KINDS

CATEGORY: Final = "almoner"
SELECTABLE_FIELDS_MAX: Final = 8

INT_OR_STRING: Final = "x-kubernetes-int-or-string"
PRESERVE: Final = "x-kubernetes-preserve-unknown-fields"
# Keywords that a structural schema takes as they are.
_KEPT: Final = frozenset(
    {
        "type", "format", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum",
        "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties",
        "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", INT_OR_STRING, PRESERVE,
        VALIDATIONS,
    }
)  # fmt: skip
# Keywords that other code of this module handles, or that say nothing to the API server.
_HANDLED: Final = frozenset(
    {"$ref", "$defs", "anyOf", "allOf", "const", "exclusiveMinimum", "exclusiveMaximum", "properties", "required",
     "items", "additionalProperties", "patternProperties", "propertyNames", "default", "title"}
)  # fmt: skip


class NotStructuralError(ValueError):
    """A model uses something that no structural schema can say; the message names the path."""


def structural_schema(model: type[APIModel], *, defaults: bool = True) -> dict[str, Any]:
    """Give a model's structural schema. Statuses go without defaults: what nobody observed is not written."""
    raw = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(raw.get("$defs", {}), defaults=defaults).convert(raw, model.__name__)


class _Converter:
    """Rewrites one JSON schema document."""

    def __init__(self, definitions: dict[str, Any], *, defaults: bool) -> None:
        self.definitions = definitions
        self.defaults = defaults
        self._open: list[str] = []

    def convert(self, raw: dict[str, Any], path: str) -> dict[str, Any]:
        """Rewrite the schema at `path`, recursively."""
        depth = len(self._open)
        schema = self._flatten(raw, path)
        unknown = sorted(set(schema) - _KEPT - _HANDLED)
        if unknown:
            raise NotStructuralError(f"{path}: keywords that a structural schema cannot say: {', '.join(unknown)}")
        out = {key: value for key, value in schema.items() if key in _KEPT}
        if out.get(INT_OR_STRING):
            out.pop("type", None)
            # `kubectl explain` shows such a field as an object.
            out["description"] = f"{out.get('description', '')} A string or an integer, never a float.".strip()
        elif "type" not in out and not out.get(PRESERVE):
            raise NotStructuralError(f"{path}: a schema without a type; say what it is, or preserve unknown fields")
        if isinstance(out.get("type"), list):
            raise NotStructuralError(f"{path}: several types; use x-kubernetes-int-or-string or one type")
        if out.get("type") == "integer":
            out.setdefault("format", "int64")
        self._bounds(schema, out, path)
        self._children(schema, out, path)
        if self.defaults:
            self._default(schema, out)
        del self._open[depth:]
        return out

    def _flatten(self, raw: dict[str, Any], path: str) -> dict[str, Any]:
        """Inline references and optional types until none is left. What stands outside wins over what it refers to."""
        schema = dict(raw)
        while True:
            if "$ref" in schema:
                name = schema.pop("$ref").removeprefix("#/$defs/")
                if name in self._open:
                    raise NotStructuralError(f"{path}: {name} contains itself; a structural schema cannot recurse")
                self._open.append(name)
                schema = _merge(self.definitions[name], schema)
            elif "anyOf" in schema:
                choices = [each for each in schema.pop("anyOf") if each.get("type") != "null"]
                if schema.get(INT_OR_STRING):
                    continue
                if len(choices) != 1:
                    raise NotStructuralError(f"{path}: a union of {len(choices)} types; only 'or null' can be dropped")
                schema = _merge(choices[0], schema)
            elif "allOf" in schema:
                choices = schema.pop("allOf")
                if len(choices) != 1:
                    raise NotStructuralError(f"{path}: allOf of {len(choices)} schemas")
                schema = _merge(choices[0], schema)
            else:
                return schema

    @staticmethod
    def _bounds(schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        """Rewrite const, and exclusive bounds of integers, which structural schemas know as booleans only."""
        if "const" in schema:
            out["enum"] = [schema["const"]]
        for exclusive, inclusive, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
            if exclusive in schema:
                if out.get("type") != "integer":
                    raise NotStructuralError(f"{path}: {exclusive} of something other than an integer")
                out[inclusive] = schema[exclusive] + step

    def _children(self, schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        """Convert properties, items and the values of maps."""
        if "properties" in schema:
            out["properties"] = {
                name: self.convert(child, f"{path}.{name}") for name, child in schema["properties"].items()
            }
            for name, child in out["properties"].items():
                if not child.get("description"):
                    raise NotStructuralError(f"{path}.{name}: a field without a description")
            if schema.get("required"):
                out["required"] = list(schema["required"])
            # Unknown fields are pruned or refused by the API server, whatever the model does with them.
            if schema.get("additionalProperties") not in (None, False):
                raise NotStructuralError(f"{path}: additionalProperties beside properties")
        elif out.get("type") == "object" and not out.get(PRESERVE):
            out["additionalProperties"] = self.convert(_map_values(schema, out, path), f"{path}[*]")
        if "items" in schema:
            out["items"] = self.convert(schema["items"], f"{path}[]")
        elif out.get("type") == "array":
            raise NotStructuralError(f"{path}: a list that does not say what it holds")

    @staticmethod
    def _default(schema: dict[str, Any], out: dict[str, Any]) -> None:
        """Keep the defaults that say something.

        An object gets `{}` where something below it has a default, so that defaulting goes down. Null, "", [] and empty
        objects mean the same as absence here, and would only be stored over and over.
        """
        default = schema.get("default")
        if isinstance(default, dict):
            if any("default" in child for child in out.get("properties", {}).values()):
                out["default"] = {}
        elif default is not None and default not in ("", []):
            out["default"] = default


def _merge(inner: dict[str, Any], outer: dict[str, Any]) -> dict[str, Any]:
    """Lay a field's own keywords over those of its type; rules add up."""
    merged = {**inner, **outer}
    rules = [*inner.get(VALIDATIONS, []), *outer.get(VALIDATIONS, [])]
    if rules:
        merged[VALIDATIONS] = rules
    return merged


def _map_values(schema: dict[str, Any], out: dict[str, Any], path: str) -> dict[str, Any]:
    """Give the schema of a map's values. Bounds of its keys, which structural schemas cannot say, become a rule."""
    values: Any = schema.get("additionalProperties")
    tests: list[str] = []
    if patterns := schema.get("patternProperties"):
        if len(patterns) != 1:
            raise NotStructuralError(f"{path}: {len(patterns)} patterns of keys")
        ((pattern, values),) = patterns.items()
        tests.append(f"key.matches(r'{pattern}')")
    names = dict(schema.get("propertyNames", {}))
    if (longest := names.pop("maxLength", None)) is not None:
        tests.append(f"size(key) <= {longest}")
    if names or not isinstance(values, dict):
        raise NotStructuralError(f"{path}: a map whose values or keys a structural schema cannot say")
    if tests:
        rule = Rule(f"self.all(key, {' && '.join(tests)})", "every key must be a label key such as 'example.com/team'")
        out[VALIDATIONS] = [*out.get(VALIDATIONS, []), rule.to_schema()]
    return values


def custom_resource_definition(kind: Kind) -> dict[str, Any]:
    """Give the CustomResourceDefinition of one kind."""
    if len(kind.selectable_fields) > SELECTABLE_FIELDS_MAX:
        raise NotStructuralError(f"{kind.kind}: at most {SELECTABLE_FIELDS_MAX} selectable fields")
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        "schema": {"openAPIV3Schema": _root_schema(kind)},
        "subresources": {"status": {}},
    }
    if kind.selectable_fields:
        version["selectableFields"] = [{"jsonPath": path} for path in kind.selectable_fields]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "almoner"}},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.kind,
                "listKind": f"{kind.kind}List",
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": list(kind.short_names),
                "categories": [CATEGORY],
            },
            "scope": kind.scope,
            "versions": [version],
        },
    }


def _root_schema(kind: Kind) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
            "kind": {"type": "string", "description": f"Always {kind.kind}."},
            # The API server describes metadata itself, and refuses anything here but bounds of the name.
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": kind.name_length_max}},
            },
            "spec": structural_schema(kind.spec),
            "status": {**structural_schema(kind.status, defaults=False), "default": {"observedGeneration": UNSEEN}},
        },
    }
    if kind.rules:
        schema[VALIDATIONS] = [rule.to_schema() for rule in kind.rules]
    return schema


def _column(column: Column) -> dict[str, Any]:
    out: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.path}
    if column.description:
        out["description"] = column.description
    if column.priority:
        out["priority"] = column.priority
    return out


def all_definitions() -> dict[str, dict[str, Any]]:
    """Give every CustomResourceDefinition by plural name, in the order of the registry."""
    return {kind.plural: custom_resource_definition(kind) for kind in KINDS}
