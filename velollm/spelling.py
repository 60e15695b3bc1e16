"""Other spellings of the API's paths: what base URLs with a slash, a `/v1` or an `/api` too many, or none, make of it.

Not of those that change what models there are: they may be guarded, by their plain spelling, in front of this server.
"""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["as_served"]

ROOTS = ("v1", "api")
GUARDED = frozenset({"/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"})


def as_served(path: str, routes: Collection[str], *, alone: bool) -> str:
    """The one of `routes` that `path` means, or else `path` as it is.

    `alone` says that no app has paths of its own beside the API: then `/chat/completions` means `/v1/chat/completions`.
    """
    if path in routes:
        return path
    parts = [part for part in path.split("/") if part]
    while len(parts) > 1 and parts[0] in ROOTS and parts[1] in ROOTS:
        del parts[0]
    tidy = "/" + "/".join(parts)
    if alone and f"/v1{tidy}" in routes:
        return f"/v1{tidy}"
    return tidy if tidy in routes and tidy not in GUARDED else path
