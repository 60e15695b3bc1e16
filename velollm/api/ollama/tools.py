"""Tools as Ollama's templates can show them to a model.

Of a JSON schema it reads `type`, `description`, `enum`, `items`, `properties`, `anyOf` and `required`, refuses the
request when one of them has another type than it expects, and drops the rest: a property that is a reference (as
Pydantic writes nested models) would reach the model without its fields. So references are resolved here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from velollm.messages import Tool

__all__ = ["encode_tools"]

JSON: TypeAlias = dict[str, Any]

DEEPEST = 12  # a template shows the schema as it is: what is nested deeper helps no model
MOST_NODES = 2000


def encode_tools(tools: Iterable[Tool]) -> list[JSON]:
    """The tools of a request."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": _Schema(tool.parameters or {}).parameters(),
            },
        }
        for tool in tools
    ]


class _Schema:
    """One schema, read with its references resolved."""

    def __init__(self, root: JSON) -> None:
        self._root = root
        self._nodes = 0

    def parameters(self) -> JSON:
        """The schema of a tool's arguments: always an object."""
        schema = self._plain(self._root, 0)
        schema["type"] = "object"
        schema.setdefault("properties", {})
        return {key: value for key, value in schema.items() if key in ("type", "properties", "required", "description")}

    def _plain(self, value: Any, depth: int) -> JSON:
        self._nodes += 1
        if not isinstance(value, dict) or depth > DEEPEST or self._nodes > MOST_NODES:
            return {}
        node = self._resolved(value)
        plain: JSON = {}
        if isinstance(kind := _kind(node.get("type")), str | list):
            plain["type"] = kind
        if isinstance(node.get("description"), str):
            plain["description"] = node["description"]
        if "const" in node:
            plain["enum"] = [node["const"]]
        elif isinstance(node.get("enum"), list):
            plain["enum"] = node["enum"]
        if isinstance(node.get("properties"), dict):
            plain["properties"] = {name: self._plain(inner, depth + 1) for name, inner in node["properties"].items()}
            plain.setdefault("type", "object")
        if "items" in node:
            plain["items"] = self._plain(node["items"], depth + 1)
        if isinstance(node.get("required"), list):
            plain["required"] = [name for name in node["required"] if isinstance(name, str)]
        choices = node.get("anyOf") or node.get("oneOf")
        if isinstance(choices, list):
            plain["anyOf"] = [self._plain(choice, depth + 1) for choice in choices]
        return plain

    def _resolved(self, node: JSON) -> JSON:
        """What `$ref` and `allOf` bring in, under the node's own words."""
        for _ in range(DEEPEST):
            reference, parts = node.get("$ref"), node.get("allOf")
            if isinstance(reference, str):
                found = self._find(reference)
            elif isinstance(parts, list):
                found = {}
                for part in parts:
                    found.update(self._resolved(part) if isinstance(part, dict) and part is not node else {})
            else:
                break
            node = {**found, **{key: value for key, value in node.items() if key not in ("$ref", "allOf")}}
        return node

    def _find(self, reference: str) -> JSON:
        if not reference.startswith("#"):
            return {}
        node: Any = self._root
        for step in reference[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            node = node.get(name) if isinstance(node, dict) else None
        return node if isinstance(node, dict) else {}


def _kind(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return value
    return None
