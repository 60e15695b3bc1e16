"""Which embedding requests may share one call, and what each has used of it. No I/O."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import orjson

from velollm.messages import EmbedRequest

__all__ = ["batch_key", "share_tokens", "size_of"]

CHARACTERS_A_TOKEN = 4


def batch_key(request: EmbedRequest) -> Hashable | None:
    """What requests have in common that may share a call: all but their inputs. None for those that are to be alone.

    Tenants never share one, so that each pays for its own work.
    """
    context = request.context
    try:
        rest = orjson.dumps([request.options, request.extra], option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None
    return (request.model, request.dimensions, request.truncate, request.keep_alive, rest, context.tenant,
            context.priority)  # fmt: skip


def size_of(inputs: Sequence[str | list[int]]) -> int:
    """About how many characters inputs have."""
    return sum(len(one) if isinstance(one, str) else CHARACTERS_A_TOKEN * len(one) for one in inputs)


def share_tokens(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` tokens divided in proportion to `sizes`: whole numbers with that sum."""
    weight = sum(sizes)
    if weight == 0:
        sizes, weight = [1] * len(sizes), len(sizes)
    shares = [total * size // weight for size in sizes]
    by_rest = sorted(range(len(sizes)), key=lambda number: -(total * sizes[number] % weight))
    for number in by_rest[: total - sum(shares)]:
        shares[number] += 1
    return shares
