"""The few words in which the schemas are written. `null` in an optional field is the same as its absence everywhere."""

from __future__ import annotations

from typing import Any, TypeAlias

__all__ = [
    "ANY_OBJECT",
    "BASE64",
    "BOOL",
    "INT",
    "INT64",
    "STR",
    "array",
    "enum",
    "integer",
    "number",
    "obj",
    "one_of",
    "optional",
    "ref",
    "string",
    "tagged",
    "when",
]

JSON: TypeAlias = dict[str, Any]

INT64 = 2**63 - 1
STR: JSON = {"type": "string"}
BOOL: JSON = {"type": "boolean"}
INT: JSON = {"type": "integer"}
ANY_OBJECT: JSON = {"type": "object"}
BASE64: JSON = {
    "type": "string",
    "minLength": 4,
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)$",
}


def ref(name: str) -> JSON:
    """A schema of `components`."""
    return {"$ref": f"#/components/schemas/{name}"}


def optional(schema: JSON) -> JSON:
    """The schema, or null."""
    kind = schema.get("type")
    if kind == "null":
        return schema
    if isinstance(kind, str) and "enum" not in schema and "const" not in schema:
        return {**schema, "type": [kind, "null"]}
    if "enum" in schema:
        return {**schema, "type": [kind, "null"], "enum": [*schema["enum"], None]}
    return {"anyOf": [schema, {"type": "null"}]}


def string(**limits: Any) -> JSON:
    """A string with limits (`minLength`, `pattern`, `description`)."""
    return {"type": "string", **limits}


def enum(*words: str) -> JSON:
    """One of these words."""
    return {"type": "string", "enum": list(words)}


def integer(low: int | None = None, high: int | None = None) -> JSON:
    """An integer within limits that are themselves permitted."""
    limits = {"minimum": low, "maximum": high}
    return {"type": "integer", **{name: limit for name, limit in limits.items() if limit is not None}}


def number(low: float, high: float) -> JSON:
    """A number within limits that are themselves permitted."""
    return {"type": "number", "minimum": low, "maximum": high}


def array(items: JSON, least: int = 0, most: int | None = None) -> JSON:
    """An array of `items`."""
    limits: JSON = {"minItems": least} if least else {}
    if most is not None:
        limits["maxItems"] = most
    return {"type": "array", "items": items, **limits}


def obj(required: JSON | None = None, more: JSON | None = None, /, **annotations: Any) -> JSON:
    """An object: fields that must be there, fields that may be (or be null), and any others."""
    required = required or {}
    fields = {**required, **{name: optional(schema) for name, schema in (more or {}).items()}}
    schema: JSON = {"type": "object", "properties": fields, **annotations}
    return {**schema, "required": list(required)} if required else schema


def tagged(kind: str, required: JSON | None = None, more: JSON | None = None) -> JSON:
    """An object whose `type` is `kind`."""
    return obj({"type": {"const": kind}, **(required or {})}, more)


def one_of(*schemas: JSON) -> JSON:
    """Any of the schemas."""
    return {"anyOf": list(schemas)}


def when(field: str, value: JSON, then: JSON) -> JSON:
    """A condition for `allOf`: if `field` is there and fits `value`, the fields of `then` must be there and fit."""
    return {
        "if": {"properties": {field: value}, "required": [field]},
        "then": {"properties": then, "required": list(then)},
    }
