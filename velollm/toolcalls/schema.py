"""A JSON Schema reader that both validates and coerces: arguments come out as the schema wants them, or not at all.

Nodes are compiled when first used and kept, so a schema of 5,000 properties costs what a call touches. Every visit
draws from a budget: a schema that refers to itself in circles ends in a refusal, not in a hang. Remote `$ref`s are
never fetched; `format` is an annotation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from velollm.toolcalls.checks import check_length, check_number, has_twins
from velollm.toolcalls.coerce import coerce, matches_type, same
from velollm.toolcalls.fitting import Context, Mismatch
from velollm.toolcalls.keys import KeyMap
from velollm.toolcalls.patterns import safe_pattern
from velollm.toolcalls.values import Bare, Lexeme, Raw, Unreadable, plain

__all__ = ["Node", "Schema"]

_MAX_REFS = 32
_ALIASES = {
    "int": "integer", "int32": "integer", "int64": "integer", "long": "integer",
    "float": "number", "double": "number", "decimal": "number", "numeric": "number",
    "str": "string", "text": "string", "varchar": "string", "bool": "boolean",
    "dict": "object", "map": "object", "list": "array", "tuple": "array", "none": "null",
}  # fmt: skip
_LOGIC = frozenset({"$ref", "enum", "const", "anyOf", "oneOf", "allOf", "not", "if", "dependentRequired"})
_MEASURES = frozenset({
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
    "minItems", "maxItems", "uniqueItems", "contains", "minProperties", "maxProperties",
})  # fmt: skip
_TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})


class Schema:
    """A root schema and the nodes compiled from it so far."""

    __slots__ = ("_nodes", "document", "root")

    def __init__(self, document: Any) -> None:
        self.document = document
        self._nodes: dict[int, tuple[Any, Node]] = {}
        self.root = self.node(document)

    def node(self, part: Any) -> Node:
        found = self._nodes.get(id(part))
        if found is not None and found[0] is part:
            return found[1]
        made = Node(self, part)
        self._nodes[id(part)] = (part, made)
        return made

    def resolve(self, pointer: str) -> Any:
        """The part that a local `$ref` names; None when there is none."""
        if not pointer.startswith("#"):
            return None
        part = self.document
        for raw in pointer[1:].split("/")[1:]:
            key = raw.replace("~1", "/").replace("~0", "~").replace("%24", "$")
            if isinstance(part, Mapping) and key in part:
                part = part[key]
            elif isinstance(part, list) and key.isdecimal() and len(key) < 6 and int(key) < len(part):
                part = part[int(key)]
            else:
                return None
        return part


class Node:
    """One schema or subschema."""

    __slots__ = (
        "_keys", "_measured", "_owner", "_pattern", "_pattern_read", "_simple", "properties", "required", "spec",
        "types", "verdict",
    )  # fmt: skip

    def __init__(self, owner: Schema, spec: Any) -> None:
        self._owner = owner
        self._keys: KeyMap | None = None
        self._pattern: Any = None
        self._pattern_read = False
        self.verdict: bool | None = spec if isinstance(spec, bool) else None
        self.spec: Mapping[str, Any] = spec if isinstance(spec, Mapping) else {}
        self.types = _types(self.spec)
        required = self.spec.get("required")
        self.required: tuple[str, ...] = (
            tuple(key for key in required if isinstance(key, str)) if isinstance(required, list) else ()
        )
        properties = self.spec.get("properties")
        self.properties: Mapping[str, Any] = properties if isinstance(properties, Mapping) else {}
        self._simple = self.verdict is None and self.spec.keys().isdisjoint(_LOGIC)
        self._measured = not self.spec.keys().isdisjoint(_MEASURES)

    # -- structure

    def child(self, part: Any) -> Node:
        return self._owner.node(part)

    @property
    def keys(self) -> KeyMap:
        if self._keys is None:
            self._keys = KeyMap(self.properties)
        return self._keys

    def target(self, ctx: Context) -> Node:
        """This node, or what its chain of `$ref`s leads to."""
        node = self
        for _ in range(_MAX_REFS):
            pointer = node.spec.get("$ref")
            if not isinstance(pointer, str):
                return node
            ctx.spend()
            part = self._owner.resolve(pointer)
            if part is None:
                raise Mismatch("", f"$ref {pointer!r:.80} does not resolve")
            node = self.child(part)
        raise Mismatch("", "$ref goes in circles")

    def allows(self, kind: str, ctx: Context, depth: int = 0) -> bool:
        """Whether a value of this JSON type can be valid here at all."""
        ctx.spend()
        if depth > 8:
            return True
        node = self.target(ctx)
        if node.types is not None and kind not in node.types and not (kind == "integer" and "number" in node.types):
            return False
        values = node.choices()
        if values is not None:
            return any(matches_type(value, kind) for value in values)
        for word in ("anyOf", "oneOf"):
            branches = node.spec.get(word)
            if not isinstance(branches, list) or not branches:
                continue
            if not any(node.child(branch).allows(kind, ctx, depth + 1) for branch in branches):
                return False
        parts = node.spec.get("allOf")
        if isinstance(parts, list):
            return all(node.child(part).allows(kind, ctx, depth + 1) for part in parts)
        return True

    def choices(self) -> list[Any] | None:
        if "const" in self.spec:
            return [self.spec["const"]]
        found = self.spec.get("enum")
        return found if isinstance(found, list) else None

    # -- fitting

    def fit(self, value: Any, ctx: Context, path: str = "") -> Any:
        """`value` as this schema wants it.

        Raises:
            Mismatch: it cannot be had by the coercions of the contract.
        """
        ctx.spend()
        if self._simple:
            value = self._fit_type(value, ctx, path)
            return self._checked(value, ctx, path) if self._measured else value
        if self.verdict is False:
            raise Mismatch(path, "not allowed")
        if "$ref" in self.spec:
            return self._fit_ref(value, ctx, path)
        choices = self.choices()
        if choices is not None:
            return self._fit_choice(value, choices, ctx, path)
        spec = self.spec
        for word in ("anyOf", "oneOf"):
            branches = spec.get(word)
            if isinstance(branches, list) and branches:
                value = self._fit_branches(value, branches, ctx, path)
                if self.types is None and "properties" not in spec:
                    return self._checked(value, ctx, path)
        parts = spec.get("allOf")
        if isinstance(parts, list):
            for part in parts:
                value = self.child(part).fit(value, ctx, path)
            if self.types is None and "properties" not in spec:
                return self._checked(value, ctx, path)
        value = self._fit_type(value, ctx, path)
        return self._checked(value, ctx, path)

    def _fit_ref(self, value: Any, ctx: Context, path: str) -> Any:
        ctx.refs += 1
        try:
            if ctx.refs > 200:
                raise Mismatch(path, "$ref nests too deeply")
            return self.target(ctx).fit(value, ctx, path)
        finally:
            ctx.refs -= 1

    def _fit_type(self, value: Any, ctx: Context, path: str) -> Any:
        types = self.types
        if types is None:
            if "properties" in self.spec and type(value) is dict:
                return self.fit_object(value, ctx, path)
            if ("items" in self.spec or "prefixItems" in self.spec) and type(value) is list:
                return self._fit_items(value, ctx, path)
            return _free(value, path)
        value = coerce(value, types, ctx, path)
        kind = type(value)
        if kind is dict:
            return self.fit_object(value, ctx, path)
        if kind is list:
            return self._fit_items(value, ctx, path)
        return value

    def _fit_items(self, value: list[Any], ctx: Context, path: str) -> list[Any]:
        prefix = self.spec.get("prefixItems")
        items = self.spec.get("items")
        if isinstance(items, list):
            prefix, items = items, self.spec.get("additionalItems")
        heads = [self.child(part) for part in prefix] if isinstance(prefix, list) else []
        rest = self.child(items) if items is not None else None
        made = []
        for index, item in enumerate(value):
            node = heads[index] if index < len(heads) else rest
            where = f"{path}[{index}]"
            made.append(node.fit(item, ctx, where) if node is not None else _free(item, where))
        return made

    def fit_object(self, value: dict[str, Any], ctx: Context, path: str) -> dict[str, Any]:
        properties = self.properties
        made: dict[str, Any] = {}
        for key, item in self._renamed(value, ctx).items():
            part = properties.get(key)
            where = f"{path}.{key}" if path else key
            if part is not None:
                node = self.child(part)
                if key not in self.required and self._is_blank(node, item, ctx):
                    ctx.note("null_dropped")
                    continue
                made[key] = node.fit(item, ctx, where)
                continue
            extra = self._extra(key)
            if extra is None:
                ctx.note("unknown_key_dropped")
                continue
            made[key] = extra.fit(item, ctx, where)
        for key in self.required:
            if key not in made:
                raise Mismatch(path, f"{key!r} is required")
        return made

    def _renamed(self, value: dict[str, Any], ctx: Context) -> dict[str, Any]:
        """Keys that are case or separator variants of a property take its name; an empty key goes."""
        properties = self.properties
        if all(key in properties for key in value):
            return value
        made: dict[str, Any] = {}
        for key, item in value.items():
            if key in properties:
                made[key] = item
                continue
            if not key.strip():
                ctx.note("empty_key_dropped")
                continue
            name = None if self._matches_pattern(key) else self.keys.variant(key)
            if name is not None and name not in value and name not in made:
                ctx.note("key_renamed")
                made[name] = item
            else:
                made[key] = item
        return made

    def _matches_pattern(self, key: str) -> bool:
        patterns = self.spec.get("patternProperties")
        if not isinstance(patterns, Mapping):
            return False
        return any((found := safe_pattern(pattern)) and found.search(key) for pattern in patterns)

    def _extra(self, key: str) -> Node | None:
        """The schema for a key that is no property; None where such keys are not allowed."""
        patterns = self.spec.get("patternProperties")
        if isinstance(patterns, Mapping):
            for pattern, part in patterns.items():
                found = safe_pattern(pattern)
                if found is not None and found.search(key):
                    return self.child(part)
        extra = self.spec.get("additionalProperties")
        if extra is None or extra is True:
            return _ANYTHING
        return None if extra is False else self.child(extra)

    def _is_blank(self, node: Node, item: Any, ctx: Context) -> bool:
        """Rule 10: null for an optional key that cannot be null, and its spellings where no free string may stand."""
        if item is None:
            return not node.allows("null", ctx)
        if not isinstance(item, str) or len(item) > 40 or item.strip().lower() not in ("", "null", "none"):
            return False
        target = node.target(ctx)
        choices = target.choices()
        if choices is not None:
            return item not in choices and not (None in choices and item.strip())
        if node.allows("string", ctx):
            return False
        return not (item.strip() and node.allows("null", ctx))

    def _fit_choice(self, value: Any, choices: list[Any], ctx: Context, path: str) -> Any:
        for choice in choices:
            if same(value, choice):
                return choice
        if type(value) is list and len(value) == 1 and not any(isinstance(choice, list) for choice in choices):
            ctx.note("unwrapped_scalar")
            return self._fit_choice(value[0], choices, ctx, path)
        if isinstance(value, str):
            text = value.strip()
            typed = [choice for choice in choices if not isinstance(choice, str) and same(Lexeme(text), choice)]
            typed += [choice for choice in choices if isinstance(choice, bool) and text.lower() == str(choice).lower()]
            typed += [choice for choice in choices if choice is None and text.lower() in ("null", "none")]
            if typed:
                if not (ctx.quoted or type(value) is Raw):
                    ctx.note("type_coerced")
                return typed[0]
            found = KeyMap({choice: None for choice in choices if isinstance(choice, str)}).variant(text)
            if found is not None:
                ctx.note("enum_variant")
                return found
        raise Mismatch(path, f"{_show(value)} is not one of the allowed values")

    def _fit_branches(self, value: Any, branches: list[Any], ctx: Context, path: str) -> Any:
        """The first branch that takes the value as it is, else the first that takes it after coercion."""
        nodes = [self.child(branch) for branch in branches]
        errors: Mismatch | None = None
        for exact in (True, False):
            if exact and type(value) is Raw:
                texts = [node for node in nodes if node.allows("string", ctx)]
                nodes = texts + [node for node in nodes if node not in texts]
            for node in nodes:
                trial = Context(budget=ctx.budget, quoted=ctx.quoted, refs=ctx.refs)
                try:
                    made = node.fit(value, trial, path)
                except Mismatch as error:
                    errors = errors or error
                    continue
                finally:
                    ctx.budget = trial.budget
                if exact and trial.repairs:
                    continue
                ctx.repairs.update(trial.repairs)
                return made
        raise errors or Mismatch(path, "fits no alternative")

    # -- checks on the final value

    def _checked(self, value: Any, ctx: Context, path: str) -> Any:
        spec = self.spec
        kind = type(value)
        if kind is int or kind is float:
            check_number(value, spec, path)
        elif kind is str:
            check_length(len(value), spec, "minLength", "maxLength", path)
            self._check_pattern(value, path)
        elif kind is list:
            check_length(len(value), spec, "minItems", "maxItems", path)
            if spec.get("uniqueItems") is True and has_twins(value):
                raise Mismatch(path, "items are not unique")
            self._check_contains(value, ctx, path)
        elif kind is dict:
            check_length(len(value), spec, "minProperties", "maxProperties", path)
        if "oneOf" in spec or "not" in spec or "if" in spec or "dependentRequired" in spec:
            self._check_logic(value, ctx, path)
        return value

    def _check_pattern(self, value: str, path: str) -> None:
        if not self._pattern_read:
            self._pattern = safe_pattern(self.spec.get("pattern"))
            self._pattern_read = True
        if self._pattern is not None and not self._pattern.search(value[:10_000]):
            raise Mismatch(path, "does not match the pattern")

    def _check_contains(self, value: list[Any], ctx: Context, path: str) -> None:
        if "contains" in self.spec:
            node = self.child(self.spec["contains"])
            if not any(node.holds(item, ctx) for item in value):
                raise Mismatch(path, "contains no item of the wanted kind")

    def _check_logic(self, value: Any, ctx: Context, path: str) -> None:
        spec = self.spec
        branches = spec.get("oneOf")
        if isinstance(branches, list) and branches and self._count_holding(branches, value, ctx) != 1:
            raise Mismatch(path, "fits more than one alternative")
        if "not" in spec and self.child(spec["not"]).holds(value, ctx):
            raise Mismatch(path, "is excluded")
        if "if" in spec:
            word = "then" if self.child(spec["if"]).holds(value, ctx) else "else"
            if word in spec and not self.child(spec[word]).holds(value, ctx):
                raise Mismatch(path, f"does not meet {word!r}")
        needs = spec.get("dependentRequired")
        if isinstance(needs, Mapping) and isinstance(value, dict):
            for key, others in needs.items():
                if key in value and isinstance(others, list) and any(other not in value for other in others):
                    raise Mismatch(path, f"{key!r} needs {others}")

    def _count_holding(self, branches: list[Any], value: Any, ctx: Context) -> int:
        return sum(self.child(branch).holds(value, ctx) for branch in branches)

    def holds(self, value: Any, ctx: Context) -> bool:
        """Whether `value`, final as it is, is valid here."""
        trial = Context(budget=ctx.budget, refs=ctx.refs)
        try:
            made = self.fit(value, trial)
        except Mismatch:
            return False
        finally:
            ctx.budget = trial.budget
        return not trial.repairs and same(made, value)


def _types(spec: Mapping[str, Any]) -> frozenset[str] | None:
    found = spec.get("type")
    names = found if isinstance(found, list) else [found]
    made = set()
    for name in names:
        if not isinstance(name, str):
            return None
        name = _ALIASES.get(name.lower(), name.lower())
        if name not in _TYPES:
            return None
        made.add(name)
    if spec.get("nullable") is True:
        made.add("null")
    return frozenset(made)


def _free(value: Any, path: str) -> Any:
    if type(value) is Raw or type(value) is Bare:
        return str(value)
    try:
        return plain(value)
    except Unreadable as error:
        raise Mismatch(path, str(error)) from None


def _show(value: Any) -> str:
    return f"{value!r:.60}"


_ANYTHING = Schema(True).root
