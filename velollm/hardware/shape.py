"""What a model keeps for each token and each conversation, block by block, as llama.cpp lays it out.

The rules are those of llama.cpp's `llama-hparams.cpp` and `llama-model.cpp` (read at b11549): which blocks attend, over
which window, with how many numbers a token; which carry a recurrent state instead, and how large it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs

from velollm.models.gguf import GGUF, GGUFError
from velollm.models.gguf_types import TENSOR_NAMES

__all__ = ["Block", "Shape", "read_shape"]

MOST_BLOCKS = 4096
LARGEST = 1 << 24  # of any one dimension
F32 = 4

# architecture: (blocks in a period, whether the first of it sees all; else the last does), unless the file says.
WINDOWED: Mapping[str, tuple[int, bool]] = MappingProxyType(
    {
        "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "cohere2": (4, False),
        "cohere2moe": (4, True), "gpt-oss": (2, False), "llama4": (4, False), "exaone4": (4, False),
        "exaone-moe": (4, False), "olmo2": (4, False), "smallthinker": (4, True), "plamo3": (8, False),
        "afmoe": (4, False), "mellum": (4, False), "laguna": (4, True),
    }
)  # fmt: skip
WINDOWS = {"gemma2": 4096, "llama4": 8192, "smallthinker": 4096}  # where the file does not say, or is not asked
RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv7", "rwkv6qwen2", "arwkv7"})
INTERVAL = frozenset({"qwen3next", "qwen35", "qwen35moe", "qwen4exp"})  # every fourth block attends
BOTH = frozenset({"falcon-h1"})  # every block attends and recurs
CACHELESS = frozenset({
    "bert", "jina-bert-v2", "jina-bert-v3", "nomic-bert", "nomic-bert-moe", "neo-bert", "eurobert", "modern-bert",
    "gemma-embedding", "gemma-embedding2", "dream", "llada", "llada-moe", "rnd1", "t5encoder",
})  # fmt: skip
SHARED_FROM = {"gemma3n": 20}  # blocks from here on use the caches of earlier ones


@attrs.frozen(kw_only=True)
class Block:
    """One block: numbers that a token leaves in the two caches, the `window` it looks back (0: all), and the numbers
    of its recurrent state (always 4 bytes each)."""

    key: int = 0
    value: int = 0
    window: int = 0
    state: int = 0


@attrs.frozen(kw_only=True)
class Shape:
    """The dimensions that decide how much memory a model takes. `weights` in bytes, `by_type` the same by kind."""

    architecture: str
    blocks: tuple[Block, ...]
    width: int
    heads: int
    query: int
    feed_forward: int
    vocabulary: int
    context: int
    weights: int
    by_type: Mapping[str, int]

    @property
    def recurrent(self) -> bool:
        """Whether a conversation has a state that cannot be shared or cut."""
        return any(block.state for block in self.blocks)


def read_shape(model: GGUF) -> Shape:
    """The shape of a model from its header.

    Raises `GGUFError` when its dimensions are absurd.
    """
    facts = _Facts(model)
    count = facts.number("block_count")
    if count > MOST_BLOCKS:
        raise GGUFError(f"a model of {count} blocks is absurd")
    trunk = max(count - facts.number("nextn_predict_layers"), 0)
    heads = facts.each("attention.head_count", count)
    blocks = () if model.architecture in CACHELESS else _blocks(facts, count, trunk)
    by_type: dict[str, int] = {}
    for tensor in model.tensors:
        name = TENSOR_NAMES.get(tensor.kind, f"type {tensor.kind}")
        by_type[name] = by_type.get(name, 0) + tensor.size
    width = facts.number("embedding_length")
    most = max(heads, default=0)
    feed = max(facts.each("feed_forward_length", count), default=0)
    if facts.number("expert_count"):
        feed = max(facts.number("expert_feed_forward_length") * max(facts.number("expert_used_count"), 1), 0)
    return Shape(
        architecture=model.architecture,
        blocks=blocks,
        width=width,
        heads=most,
        query=most * facts.number("attention.key_length", width // most if most else 0),
        feed_forward=feed,
        vocabulary=_vocabulary(model, facts),
        context=facts.number("context_length"),
        weights=sum(by_type.values()) or model.size,
        by_type=by_type,
    )


class _Facts:
    """Metadata below the architecture's name, with every number checked."""

    def __init__(self, model: GGUF) -> None:
        self._model = model
        self.architecture = model.architecture

    def get(self, key: str) -> Any:
        return self._model.metadata.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        return self._checked(key, self.get(key), default)

    def each(self, key: str, count: int, default: int = 0) -> list[int]:
        """A number for each block: the file has one for all, or a list."""
        value = self.get(key)
        if isinstance(value, list):
            numbers = [self._checked(key, item, default) for item in value[:count]]
            return numbers + [numbers[-1] if numbers else default] * (count - len(numbers))
        return [self._checked(key, value, default)] * count

    def _checked(self, key: str, value: Any, default: int) -> int:
        if type(value) is not int:
            return default
        if not 0 <= value <= LARGEST:
            raise GGUFError(f"{self.architecture}.{key} is {value}, which is absurd")
        return value


def _vocabulary(model: GGUF, facts: _Facts) -> int:
    for tensor in model.tensors:
        if tensor.name in ("output.weight", "token_embd.weight") and len(tensor.dimensions) > 1:
            return min(tensor.dimensions[1], LARGEST)
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    return facts.number("vocab_size", getattr(tokens, "count", len(tokens) if isinstance(tokens, list) else 0))


def _blocks(facts: _Facts, count: int, trunk: int) -> tuple[Block, ...]:
    arch, width = facts.architecture, facts.number("embedding_length")
    heads = facts.each("attention.head_count", count)
    kv_heads = facts.each("attention.head_count_kv", count, -1)
    windows = _windows(facts, count)
    recurs = _recurrent(facts, count, kv_heads)
    state = _state(facts, max(heads, default=0))
    latent = facts.number("attention.key_length_mla") > 0
    caching = SHARED_FROM.get(arch, count - facts.number("attention.shared_kv_layers"))
    blocks = []
    for number in range(trunk):
        usual = width // heads[number] if heads[number] else 0
        key, value = (facts.number(f"attention.{name}_length", usual) for name in ("key", "value"))
        if windows[number]:
            key = facts.number("attention.key_length_swa", key)
            value = facts.number("attention.value_length_swa", value)
        shared = kv_heads[number] if kv_heads[number] >= 0 else heads[number]
        attends = (not recurs[number] or arch in BOTH) and number < caching
        blocks.append(
            Block(
                key=key * shared if attends else 0,
                value=value * shared if attends and not latent else 0,
                window=windows[number],
                state=state if recurs[number] else 0,
            )
        )
    return tuple(blocks)


def _windows(facts: _Facts, count: int) -> list[int]:
    """The window of each block, 0 where it sees everything."""
    arch = facts.architecture
    window = facts.number("attention.sliding_window", WINDOWS.get(arch, 0))
    if arch in ("llama4", "smallthinker") and window:
        window = WINDOWS[arch]
    pattern = facts.get("attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return [window if number < len(pattern) and pattern[number] else 0 for number in range(count)]
    period, first = WINDOWED.get(arch, (0, False))
    if type(pattern) is int and arch in WINDOWED:
        period = pattern
    if not 0 < period <= MOST_BLOCKS or not window:
        return [0] * count
    return [window if number % period != (0 if first else period - 1) else 0 for number in range(count)]


def _recurrent(facts: _Facts, count: int, kv_heads: list[int]) -> list[bool]:
    arch = facts.architecture
    if arch in RECURRENT or arch in BOTH:
        return [True] * count
    told = facts.get("attention.recurrent_layers")
    if isinstance(told, list):
        return [number < len(told) and bool(told[number]) for number in range(count)]
    if arch in INTERVAL:
        interval = facts.number("full_attention_interval", 4) or 4
        return [(number + 1) % interval != 0 for number in range(count)]
    if facts.number("ssm.inner_size") or facts.number("shortconv.l_cache") or facts.number("kda.head_dim"):
        feeds = facts.each("feed_forward_length", count) if arch.startswith("nemotron_h") else [0] * count
        return [heads == 0 and not feed for heads, feed in zip(kv_heads, feeds, strict=True)]
    return [False] * count


def _state(facts: _Facts, heads: int) -> int:
    """Numbers of one block's recurrent state, for one conversation: what `n_embd_r` and `n_embd_s` add up to."""
    width, conv = facts.number("embedding_length"), facts.number("ssm.conv_kernel")
    if facts.number("wkv.head_size"):
        return width * (facts.number("token_shift_count", 2) + facts.number("wkv.head_size"))
    if facts.number("shortconv.l_cache"):
        return width * (facts.number("shortconv.l_cache") - 1)
    if facts.number("kda.head_dim"):
        size = facts.number("kda.head_dim")
        return 3 * max(conv - 1, 0) * heads * size + size * size * heads
    inner, state, groups = (facts.number(f"ssm.{key}") for key in ("inner_size", "state_size", "group_count"))
    return max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner
