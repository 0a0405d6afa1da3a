"""JSON Schemas that users write: checked as a whole before anything runs, and then asked about values.

Role: one validator for tools' arguments, structured output and guardrails, with messages that a model can act upon; the
operator judges a schema with the same code that the agent loop runs. Boundary: it never fetches a `$ref` from anywhere,
which the library would do by default. Patterns are RE2's (patterns.py), not Python's.

Why bounded: a wrong answer can break a schema in a thousand places, and three of them are enough to mend it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

from almoner_core.patterns import PatternError, compile_pattern

MESSAGES_MAX: Final = 3
MESSAGE_CHARS_MAX: Final = 200
# Values of these are data, not schemas.
_DATA: Final = frozenset({"const", "enum", "default", "examples"})
# Values of these are schemas by names of the user's, which may be anything.
_NAMED: Final = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
# Keywords of earlier drafts that say nothing in this one, and what says it now.
_OUTDATED: Final = {
    "dependencies": "dependentRequired or dependentSchemas",
    "additionalItems": "items, with prefixItems for the first ones",
    "$recursiveRef": "$dynamicRef",
}


class SchemaError(ValueError):
    """The schema itself is not a JSON Schema that can be used; the message says where."""


class Schema:
    """A JSON Schema (draft 2020-12), checked once, used often. Raises SchemaError where it is none."""

    def __init__(self, document: dict[str, Any]) -> None:
        import jsonschema  # noqa: PLC0415 - heavy, and only where there are schemas
        import referencing  # noqa: PLC0415

        self.document = document
        try:
            # Without formats: they would judge patterns by Python's rules.
            no_formats = jsonschema.FormatChecker(formats=())
            jsonschema.Draft202012Validator.check_schema(document, format_checker=no_formats)
        except jsonschema.SchemaError as error:
            raise SchemaError(f"at {_path(error)}: {error.message[:MESSAGE_CHARS_MAX]}") from error
        except RecursionError as error:
            raise SchemaError("nested too deeply") from error
        _check_keywords(document)
        _check_patterns(document)
        _check_references(document)
        self._validator = _validator_class()(document, registry=referencing.Registry())

    def problems(self, value: Any) -> list[str]:
        """Give what is wrong with the value, at most three messages that name the place; empty where nothing is.

        Raises SchemaError for a schema that cannot be followed.
        """
        from referencing.exceptions import Unresolvable  # noqa: PLC0415 - loaded already

        found: list[str] = []
        try:
            for error in self._validator.iter_errors(value):
                found.append(f"{_path(error)}: {error.message[:MESSAGE_CHARS_MAX]}")
                if len(found) == MESSAGES_MAX:
                    break
        except Unresolvable as error:
            raise SchemaError(f"$ref {error.ref!r} leads nowhere; only references within the schema work") from error
        except RecursionError as error:
            raise SchemaError("its references, or the value, go round in circles or too deep") from error
        return found


def references(document: Any) -> Iterator[tuple[str, str]]:
    """Yield the place and the target of every `$ref` and `$dynamicRef` of a schema."""
    for place, schema in subschemas(document):
        for keyword in ("$ref", "$dynamicRef"):
            target = schema.get(keyword)
            if isinstance(target, str):
                yield f"{place}.{keyword}", target


def subschemas(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every object of a schema that may be a schema itself, with its place. Does not recurse."""
    waiting: list[tuple[str, Any, bool]] = [("$", document, False)]
    while waiting:
        place, value, named = waiting.pop()
        if isinstance(value, list):
            waiting.extend((f"{place}[{index}]", below, False) for index, below in enumerate(value))
        elif isinstance(value, dict):
            if not named:
                yield place, value
            waiting.extend(
                (f"{place}.{key}", below, not named and key in _NAMED)
                for key, below in value.items()
                if named or key not in _DATA
            )


def resolve(document: dict[str, Any], target: str) -> Any:
    """Return what a reference within the schema leads to. Raises SchemaError where it leads nowhere or elsewhere."""
    import referencing  # noqa: PLC0415 - heavy
    from referencing.exceptions import NoSuchResource, Unresolvable  # noqa: PLC0415
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415

    if not target.startswith("#"):
        raise SchemaError(f"$ref {target!r} leads out of the schema; only references within the schema work")
    resource: Any = DRAFT202012.create_resource(document)
    registry: Any = referencing.Registry().with_resource("", resource)
    try:
        return registry.resolver("").lookup(target).contents
    except (Unresolvable, NoSuchResource, ValueError, TypeError, LookupError) as error:
        raise SchemaError(f"$ref {target!r} leads nowhere; only references within the schema work") from error


def self_contained(document: dict[str, Any]) -> dict[str, Any]:
    """Give a schema that says the same, whose references all lead to an entry of `$defs` by a plain name.

    Draft-07's `definitions` and references to any other place are what models' APIs and frameworks do not follow.
    Where the schema says which draft it is and what it is called is left out. Raises SchemaError.
    """
    names = {target: f"d{index}" for index, target in enumerate(sorted({each for _, each in references(document)}))}
    left_out = {"$schema", "$id", "$defs", "definitions"}
    rewritten: dict[str, Any] = _renamed({k: v for k, v in document.items() if k not in left_out}, names)
    if names:
        rewritten["$defs"] = {name: _renamed(resolve(document, target), names) for target, name in names.items()}
    return rewritten


def _renamed(value: Any, names: dict[str, str], *, named: bool = False) -> Any:
    """Rewrite the references; `named`: the keys are names of the user's."""
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, dict):
        return value
    if named:
        return {name: _renamed(below, names) for name, below in value.items()}
    renamed = {
        key: below if key in _DATA else _renamed(below, names, named=key in _NAMED) for key, below in value.items()
    }
    for keyword in ("$ref", "$dynamicRef"):
        if isinstance(target := renamed.get(keyword), str):
            del renamed[keyword]
            renamed["$ref"] = f"#/$defs/{names[target]}"
    return renamed


def _check_keywords(document: dict[str, Any]) -> None:
    """Refuse what a validator of this draft would pass over in silence."""
    for place, schema in subschemas(document):
        for keyword, now in _OUTDATED.items():
            if keyword in schema:
                raise SchemaError(f"at {place}.{keyword}: not a keyword of JSON Schema 2020-12: say it by {now}")


def _check_patterns(document: dict[str, Any]) -> None:
    unevaluated = patterned = ""
    for place, schema in subschemas(document):
        patterns = schema.get("patternProperties")
        named = [(f"{place}.pattern", schema.get("pattern"))]
        if isinstance(patterns, dict):
            named += [(f"{place}.patternProperties", pattern) for pattern in patterns]
            patterned = place
        if "unevaluatedProperties" in schema:
            unevaluated = place
        for where, pattern in named:
            if isinstance(pattern, str):
                try:
                    compile_pattern(pattern)
                except PatternError as error:
                    raise SchemaError(f"at {where}: not a regular expression of RE2: {error}") from error
    if unevaluated and patterned:
        # The library would match them with Python's regular expressions.
        raise SchemaError(f"at {unevaluated}.unevaluatedProperties: does not go together with patternProperties")


def _check_references(document: dict[str, Any]) -> None:
    for place, target in references(document):
        try:
            found = resolve(document, target)
        except SchemaError as error:
            raise SchemaError(f"at {place}: {error}") from error
        if not isinstance(found, dict | bool):
            raise SchemaError(f"at {place}: $ref {target!r} leads to something that is no schema")


@functools.cache
def _validator_class() -> Any:
    """The library's validator, with RE2 where it would use Python's regular expressions."""
    import jsonschema  # noqa: PLC0415 - heavy

    extend: Any = jsonschema.validators.extend
    return extend(
        jsonschema.Draft202012Validator,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": _additional_properties,
        },
    )


def _pattern(validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    from jsonschema import ValidationError  # noqa: PLC0415 - loaded already

    if validator.is_type(instance, "string") and not compile_pattern(pattern).found_in(instance):
        yield ValidationError(f"{instance[:MESSAGE_CHARS_MAX]!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, patterns: dict[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    for pattern, below in patterns.items():
        compiled = compile_pattern(pattern)
        for name, value in instance.items():
            if compiled.found_in(name):
                yield from validator.descend(value, below, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: dict[str, Any]) -> Iterator[Any]:
    from jsonschema import ValidationError  # noqa: PLC0415 - loaded already

    if not validator.is_type(instance, "object"):
        return
    patterns = [compile_pattern(pattern) for pattern in schema.get("patternProperties", {})]
    known = schema.get("properties", {})
    extras = [name for name in instance if name not in known and not any(each.found_in(name) for each in patterns)]
    if validator.is_type(allowed, "object"):
        for name in extras:
            yield from validator.descend(instance[name], allowed, path=name)
    elif not allowed and extras:
        named = ", ".join(repr(name) for name in sorted(extras)[:MESSAGES_MAX])
        yield ValidationError(f"Additional properties are not allowed: {named}")


def _path(error: Any) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
