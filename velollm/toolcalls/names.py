"""From the name a model wrote to the tool it meant (rule 6): exact, variant, prefix, namespace, then two typing errors.

A name that is a real word of its own never becomes another operation: `set_volume` is not `get_volume` mistyped,
and `unlock` is not `lock`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from velollm.toolcalls.keys import KeyMap, fold

__all__ = ["NameMap", "distance", "strip_name"]

_LEAK = re.compile(r"<[|｜/]|\[(?:ARGS|CALL_ID)\]|<tool|<arg|<func|<param|[({\n\"]|```")
_EDGES = " \t\r\n\"'`“”‘’.,;:=<>|"
_PREFIX = re.compile(
    r"(?:to=)?(?:functions?|tools?|default_api|multi_tool_use|assistant|function_call|tool_call|call|api|default)(?:[.:/=]|::)",
    re.IGNORECASE,
)
_SUFFIX = re.compile(r"(?::\d{1,4}|_call_[0-9a-zA-Z]+|#\d+|\(\)|:call_[0-9a-zA-Z]+|\.call|\[\d+\])$")
_BY_THE_BOOK = re.compile(r"functions\.[^.:\s]+(?::\d{1,4})?")  # as Kimi's and gpt-oss's own templates have it
_NAMESPACE = re.compile(r"[./:]|__|--")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_a-zA-Z]+")
# fmt: off
_OPERATIONS = frozenset((
    "add", "all", "any", "append", "apply", "approve", "archive", "arm", "ask", "assign", "attach", "ban", "block",
    "book", "buy", "calculate", "call", "cancel", "change", "charge", "check", "clear", "clone", "close", "commit",
    "compare", "complete", "compute", "confirm", "connect", "convert", "copy", "count", "create", "cut", "deactivate",
    "debit", "decline", "decode", "decrease", "decrypt", "delete", "deny", "deploy", "describe", "detach", "disable",
    "disarm", "disconnect", "dismiss", "down", "download", "drop", "duplicate", "edit", "enable", "encode", "encrypt",
    "end", "erase", "exclude", "execute", "exit", "export", "extend", "false", "fetch", "fill", "filter", "find",
    "finish", "first", "flush", "follow", "format", "forward", "generate", "get", "give", "grant", "hide", "hold",
    "import", "in", "include", "increase", "insert", "install", "invite", "join", "kick", "kill", "last", "leave",
    "left", "lend", "like", "link", "list", "load", "lock", "log", "login", "logout", "lookup", "mail", "make",
    "many", "map", "mark", "mask", "max", "merge", "min", "modify", "mount", "move", "mute", "name", "new", "next",
    "notify", "off", "old", "on", "one", "open", "order", "out", "pack", "park", "patch", "pause", "pay", "peek",
    "pin", "ping", "play", "poll", "pop", "post", "prev", "print", "private", "public", "publish", "pull", "purge",
    "push", "put", "query", "quit", "read", "rebase", "rebuild", "receive", "record", "redo", "refresh", "refund",
    "reject", "release", "reload", "remove", "rename", "renew", "reopen", "repeat", "replace", "reply", "report",
    "request", "reset", "resolve", "restart", "restore", "resume", "retry", "return", "reveal", "revert", "revoke",
    "right", "rotate", "run", "save", "scan", "schedule", "search", "see", "sell", "send", "set", "share", "show",
    "shut", "sign", "skip", "sleep", "sort", "split", "start", "stop", "store", "submit", "subscribe", "suspend",
    "swap", "sync", "tag", "take", "test", "toggle", "track", "transfer", "translate", "trash", "true", "turn",
    "unblock", "undo", "unfollow", "uninstall", "unlink", "unlock", "unmount", "unmute", "unpin", "unsubscribe", "up",
    "update", "upgrade", "upload", "use", "validate", "verify", "view", "void", "wait", "wake", "watch", "wipe",
    "withdraw", "write",
))
# fmt: on
_NEGATIONS = ("un", "de", "dis", "re", "in", "non", "ex", "im")


def strip_name(name: str) -> str:
    """`name` without leaked tokens, quotes, `functions.`-like prefixes and call ids."""
    found = _LEAK.search(name, 1)
    if found:
        name = name[: found.start()]
    name = name.strip(_EDGES)
    while (match := _PREFIX.match(name)) and len(name) > match.end():
        name = name[match.end() :]
    while match := _SUFFIX.search(name):
        if match.start() == 0:
            break
        name = name[: match.start()]
    return name.strip(_EDGES)


class NameMap:
    """The tools of one request, found by what a model calls them."""

    __slots__ = ("_exact", "_folded", "_tails")

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = frozenset(names)
        self._folded: KeyMap | None = None
        self._tails: dict[str, str | None] | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._exact

    def find(self, name: str) -> tuple[str, str] | None:
        """(tool name, kind of repair or ""), or None where the name means no tool, or more than one."""
        if name in self._exact:
            return name, ""
        if len(name) > 300 or not name.strip():
            return None
        bare = strip_name(name)
        if bare in self._exact:
            return bare, "" if _BY_THE_BOOK.fullmatch(name) else "name_stripped"
        if not bare:
            return None
        if self._folded is None:
            self._folded = KeyMap(self._exact)
        for form in (name.strip(), bare):
            found = self._folded.variant(form)
            if found is not None:
                return found, "name_variant"
        found = self._by_namespace(bare)
        if found is not None:
            return found, "name_namespace"
        found = self._by_distance(bare)
        return (found, "name_distance") if found is not None else None

    def _by_namespace(self, name: str) -> str | None:
        """`server.get_x` for a tool `get_x`, or `get_x` for the one tool `server__get_x`."""
        for split in _NAMESPACE.finditer(name):
            tail = name[split.end() :]
            if tail in self._exact:
                return tail
            assert self._folded is not None
            found = self._folded.variant(tail)
            if found is not None:
                return found
        if self._tails is None:
            self._tails = {}
            for known in self._exact:
                for split in _NAMESPACE.finditer(known):
                    form = fold(known[split.end() :])
                    self._tails[form] = None if form in self._tails else known
        return self._tails.get(fold(name))

    def _by_distance(self, name: str) -> str | None:
        if len(name) < 4:
            return None
        near = [
            known
            for known in self._exact
            if abs(len(known) - len(name)) <= 2 and distance(fold(name), fold(known)) <= 2
        ]
        if len(near) != 1 or not _same_operation(name, near[0]):
            return None
        return near[0]


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


def _same_operation(written: str, known: str) -> bool:
    """Whether `written` can be `known` mistyped, rather than a name of something else."""
    ours, theirs = _words(written), _words(known)
    if len(ours) == len(theirs):
        return all(_is_slip(a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    return _is_slip("".join(ours), "".join(theirs)) and not (set(ours) - set(theirs)) & _OPERATIONS


def _is_slip(written: str, meant: str) -> bool:
    if written.isdigit() or meant.isdigit() or written in _OPERATIONS:
        return False
    longer, shorter = (written, meant) if len(written) > len(meant) else (meant, written)
    if any(longer == prefix + shorter for prefix in _NEGATIONS):
        return False
    steps = distance(written, meant)
    swapped = sorted(written) == sorted(meant)
    size = min(len(written), len(meant))
    if size <= 4:
        return size >= 3 and (swapped or (steps == 1 and len(written) != len(meant)))
    return steps <= (2 if size >= 7 or swapped else 1)


def distance(a: str, b: str, limit: int = 2) -> int:
    """Levenshtein distance, or `limit + 1` where it is larger."""
    if abs(len(a) - len(b)) > limit:
        return limit + 1
    if a == b:
        return 0
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        if min(row) > limit:
            return limit + 1
        before = row
    return min(before[-1], limit + 1)
