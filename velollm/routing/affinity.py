"""Who served the beginning of a prompt last: hash chains of leading blocks, and sessions. No I/O, bounded memory."""

from __future__ import annotations

from collections import OrderedDict

import attrs
from xxhash import xxh3_64_intdigest

from velollm.messages import ChatRequest

__all__ = ["Chain", "PrefixTable", "RecentTable", "chain_of"]

BLOCK = 4096  # characters of a long text
MOST_BLOCKS = 256
MOST_NODES = 1 << 16
SHARED_BRANCHES = 2  # so many other ways on from a block show that it is common to many conversations
CHARACTERS_PER_TOKEN = 4


@attrs.frozen
class Chain:
    """Hashes of the beginnings of a prompt, shortest first, the tokens of each, and how many are shared by nature:
    those of the system prompt and of tools.
    """

    hashes: tuple[int, ...]
    tokens: tuple[int, ...]
    shared: int


def chain_of(request: ChatRequest) -> Chain:
    """The chain of a request: a block for each message, several for a long one. Tenants and models have their own."""
    seed = xxh3_64_intdigest(f"{request.context.tenant}\0{request.model}\0{len(request.tools)}".encode())
    hashes: list[int] = []
    tokens: list[int] = []
    shared = length = 0
    for role, text in _texts(request):
        for start in range(0, max(len(text), 1), BLOCK):
            if len(hashes) == MOST_BLOCKS:
                return Chain(tuple(hashes), tuple(tokens), shared)
            block = text[start : start + BLOCK]
            if role == "prompt" and len(block) < BLOCK and hashes:
                break  # the end of a growing text is another one each time
            seed = xxh3_64_intdigest(f"{role}\0{block}".encode("utf-8", "surrogatepass"), seed)
            length += len(block)
            hashes.append(seed)
            tokens.append(length // CHARACTERS_PER_TOKEN + 1)
        if role in ("system", "developer") and shared == len(hashes) - max(1, -(-len(text) // BLOCK)):
            shared = len(hashes)
    return Chain(tuple(hashes), tuple(tokens), shared)


def _texts(request: ChatRequest) -> list[tuple[str, str]]:
    if request.prompt is not None:
        prompt = request.prompt
        return [("prompt", prompt if isinstance(prompt, str) else " ".join(map(str, prompt)))]
    texts: list[tuple[str, str]] = []
    for message in request.messages:
        text = message.text
        if message.tool_calls:
            text += "".join(call.name + call.arguments for call in message.tool_calls)
        texts.append((message.role, text))
    return texts


class _Node:
    """A block: where it was computed last, one block that followed it, and how many others did."""

    __slots__ = ("branches", "lane", "next")

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.next: int | None = None
        self.branches = 0


class PrefixTable:
    """Which backend has the longest beginning of a prompt in its cache. The least recently used blocks go first."""

    def __init__(self, most: int = MOST_NODES) -> None:
        self._most = most
        self._nodes: OrderedDict[int, _Node] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def find(self, hashes: tuple[int, ...], shared: int) -> tuple[str, int] | None:
        """The backend, and how many blocks it has; None when these are none of this conversation's own.

        A system prompt that every conversation begins with decides nothing, known as such or found out.
        """
        for index in range(len(hashes) - 1, shared - 1, -1):
            node = self._nodes.get(hashes[index])
            if node is not None:
                following = hashes[index + 1] if index + 1 < len(hashes) else None
                if node.branches >= SHARED_BRANCHES and following is not None:
                    return None
                return node.lane, index + 1
        return None

    def record(self, hashes: tuple[int, ...], lane: str) -> None:
        """The prompt with these blocks was given to `lane`."""
        nodes = self._nodes
        for index, key in enumerate(hashes):
            node = nodes.get(key)
            if node is None:
                node = nodes[key] = _Node(lane)
            else:
                node.lane = lane
                nodes.move_to_end(key)
            following = hashes[index + 1] if index + 1 < len(hashes) else None
            if following is not None and node.next != following:
                node.branches += node.next is not None
                node.next = following
        while len(nodes) > self._most:
            nodes.popitem(last=False)


class RecentTable:
    """Names that were seen last, each with its backend, and how many each backend has."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lanes: OrderedDict[object, str] = OrderedDict()
        self.counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._lanes)

    def get(self, key: object) -> str | None:
        """Its backend."""
        return self._lanes.get(key)

    def put(self, key: object, lane: str) -> None:
        """It was seen on `lane`."""
        before = self._lanes.pop(key, None)
        if before is not None:
            self.counts[before] -= 1
        self._lanes[key] = lane
        self.counts[lane] = self.counts.get(lane, 0) + 1
        if len(self._lanes) > self._most:
            _, oldest = self._lanes.popitem(last=False)
            self.counts[oldest] -= 1
