"""Writes a random-weight llama model as GGUF: 1.8 MB, a real byte-level BPE tokenizer, a ChatML template with tools.

    python tests/tiny_gguf.py model.gguf

It answers at once and says nothing that means anything, the same on every machine. Greedy sampling yields printable
text and never ends by itself, so answers are as long as `max_tokens` says; a grammar or schema ends them before.
Needs numpy, beside VeloLLM itself.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from velollm.models.gguf_writer import pack_head

__all__ = ["CHAT_TEMPLATE", "CONTEXT", "NAME", "write_tiny_gguf"]

Floats = npt.NDArray[np.float32]

NAME = "velollm-tiny"
CONTEXT = 4096
WIDTH, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY = 128, 2, 4, 2, 256, 512
HEAD = WIDTH // HEADS
F32 = 0  # the type of a tensor
NORMAL, CONTROL = 1, 3
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- 'You may call functions:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nFor each call write a JSON object with name and arguments:\\n' }}
    {{- '<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

TEXT = """\
the quick brown fox jumps over the lazy dog and then it sleeps in the warm sun while other animals look for something
to eat under the old trees near the river where people of the town come to swim when the days are long and the nights
are short. what is the weather in the city today? call the function with the name of the city and the unit of the
temperature. the answer is a number, a string, an object, an array, true, false or null. user system assistant tool
message content role name arguments properties required type description hello world this is a test of a small model
that has seen nothing and knows nothing but can still be asked. one two three four five six seven eight nine ten
def main(): return None import class self print json for each in list: if not value else other {"key": "value"}
"""


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def _byte_letters() -> dict[int, str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it can be seen."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in seen}
    unseen = (byte for byte in range(256) if byte not in letters)
    return {**letters, **{byte: chr(256 + number) for number, byte in enumerate(unseen)}}


def _train() -> tuple[list[str], list[str]]:
    """Byte-pair encoding learned from `TEXT`: the tokens by id, and the merges in their order."""
    letters = _byte_letters()
    words = Counter(tuple(letters[byte] for byte in f" {word}".encode()) for word in TEXT.split())
    tokens = [letters[byte] for byte in range(256)]
    merges: list[str] = []
    while len(tokens) < VOCABULARY - len(SPECIAL):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(f"{left} {right}")
        tokens.append(left + right)
        words = Counter({_merged(word, left, right): count for word, count in words.items()})
    return [*tokens, *SPECIAL], merges


def _merged(word: tuple[str, ...], left: str, right: str) -> tuple[str, ...]:
    out: list[str] = []
    for letter in word:
        if out and out[-1] == left and letter == right:
            out[-1] = left + right
        else:
            out.append(letter)
    return tuple(out)


def _sayable(tokens: list[str]) -> npt.NDArray[np.bool_]:
    """The tokens that stand for printable ASCII alone."""
    printable = {letter for byte, letter in _byte_letters().items() if 32 <= byte < 127}
    return np.array([token not in SPECIAL and set(token) <= printable for token in tokens])


# ---- the weights -----------------------------------------------------------------------------------------------------


def _weights(sayable: npt.NDArray[np.bool_], seed: int) -> Iterator[tuple[str, Floats]]:
    random = np.random.Generator(np.random.PCG64(seed))

    def matrix(rows: int, columns: int, scale: float) -> Floats:
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)

    ones = np.ones(WIDTH, np.float32)
    yield "token_embd.weight", matrix(VOCABULARY, WIDTH, 1.0)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", ones
        for name, rows in (("q", WIDTH), ("k", KV_HEADS * HEAD), ("v", KV_HEADS * HEAD), ("output", WIDTH)):
            yield f"{block}attn_{name}.weight", matrix(rows, WIDTH, WIDTH**-0.5)
        yield block + "ffn_norm.weight", ones
        for name, rows, columns in (
            ("gate", FEED_FORWARD, WIDTH),
            ("up", FEED_FORWARD, WIDTH),
            ("down", WIDTH, FEED_FORWARD),
        ):
            yield f"{block}ffn_{name}.weight", matrix(rows, columns, columns**-0.5)
    yield "output_norm.weight", ones
    output = matrix(VOCABULARY, WIDTH, 4 * WIDTH**-0.5)
    output[~sayable] = 0  # a logit of 0 never wins against 400 random ones
    yield "output.weight", output


# ---- the file --------------------------------------------------------------------------------------------------------


def _metadata(tokens: list[str], merges: list[str]) -> Mapping[str, Any]:
    special = {token: VOCABULARY - len(SPECIAL) + number for number, token in enumerate(SPECIAL)}
    return {
        "general.architecture": "llama",
        "general.name": NAME,
        "general.file_type": 0,
        "general.quantization_version": 2,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.block_count": LAYERS,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": HEAD,
        "llama.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in SPECIAL else NORMAL for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": special["<|endoftext|>"],
        "tokenizer.ggml.eos_token_id": special["<|im_end|>"],
        "tokenizer.ggml.padding_token_id": special["<|pad|>"],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE,
    }


def write_tiny_gguf(
    path: str | Path,
    *,
    seed: int = 0,
    metadata: Mapping[str, Any] = {},
    tensors: Mapping[str, Floats] = {},
    architecture: str = "llama",
    without: Collection[str] = (),
) -> Path:
    """Write the model to `path` and return it.

    `metadata` overrides or adds keys (None leaves one out), `tensors` adds weights; `architecture` names another one of
    the same shape, `without` parts of the names of weights that it does not have.
    """
    tokens, merges = _train()
    own = {key.replace("llama.", f"{architecture}.", 1): value for key, value in _metadata(tokens, merges).items()}
    own["general.architecture"] = architecture
    keys = {key: value for key, value in {**own, **metadata}.items() if value is not None}
    weights = [*_weights(_sayable(tokens), seed), *tensors.items()]
    return _write(path, keys, [pair for pair in weights if not any(part in f".{pair[0]}" for part in without)])


def _write(path: str | Path, keys: Mapping[str, Any], tensors: list[tuple[str, Floats]]) -> Path:
    head, offsets, size = pack_head(keys, [(name, array.shape[::-1], F32) for name, array in tensors])
    with open(path, "wb") as out:
        out.write(head)
        for (_, array), offset in zip(tensors, offsets, strict=True):
            out.seek(offset)
            out.write(array.tobytes())
        out.truncate(size)
    return Path(path)


if __name__ == "__main__":
    write_tiny_gguf(sys.argv[1])
