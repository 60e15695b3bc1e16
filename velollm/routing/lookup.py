"""Which backends have a model, under which of its names. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TypeAlias

from velollm.errors import BackendError, ModelNotFound, VeloError, let_go
from velollm.routing.member import Member

__all__ = ["Target", "first_error", "known_targets", "missing"]

Target: TypeAlias = tuple[Member, str]  # a backend, and its own name for the model


def known_targets(members: Sequence[Member], aliases: Mapping[str, str], model: str) -> list[Target]:
    """The backends that were seen with the model: as it is called, by its alias, or as `BACKEND/model`.

    No name at all is that of the only model that is served.
    """
    for name in (model, aliases.get(model)):
        if name is None:
            continue
        found = [(member, own) for member in members if (own := member.find(name)) is not None]
        if found:
            return found
        prefix, sep, rest = name.partition("/")
        if sep:
            member = next((member for member in members if member.name == prefix), None)
            if member is not None:
                return [(member, member.find(rest) or aliases.get(rest, rest))]
    if model == "":
        served = [(member, info.id) for member in members for info in member.listed]
        return served if len(served) == 1 else []
    return []


def missing(members: Sequence[Member], aliases: Mapping[str, str], model: str) -> VeloError:
    """What to say of a model that nobody has, or nobody who can be asked."""
    down = [member for member in members if member.error is not None]
    served = [info.id for member in members for info in member.listed]
    if down and not served:
        return first_error(members)
    near = get_close_matches(model, [*served, *aliases], n=3, cutoff=0.5)
    names = ", ".join(near or sorted(set(served))[:20]) or "none"
    words = f"the nearest names are: {names}" if near else f"served are: {names}"
    if down:
        words += f" ({', '.join(member.name for member in down)} cannot be asked now)"
    wanted = f"model {model!r} is not served here" if model else "no model was named, and several are served"
    return ModelNotFound(f"{wanted}; {words}", param="model")


def first_error(members: Sequence[Member]) -> VeloError:
    """What is wrong with the first that does not answer."""
    for member in members:
        if member.error is not None:
            let_go(member.error)  # it was raised before
            return member.error
    return BackendError("no backend answers")
