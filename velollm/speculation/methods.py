"""The drafts that there are for a model: lookups, heads that it brings along, smaller models with its vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from velollm.models.gguf import GGUF, LongArray
from velollm.speculation.lookup import Lookup, NgramMod, NgramSimple

__all__ = ["Draft", "Head", "Method", "fits", "heads", "methods", "usable"]

VOCABULARY_APART = 128  # llama.cpp's limit (common/speculative.cpp)
# (tokens looked for, tokens drafted): llama.cpp's default, and shorter ones for answers that repeat in small pieces.
SIMPLE = ((12, 48), (6, 16), (4, 8))
MODS = ((24, 48, 64), (16, 8, 32))
LENGTHS = (3, 6)  # of drafts of a model
HEADS = {"eagle3": "draft-eagle3", "dflash": "draft-dflash"}  # architecture of a file that is a head


@attrs.frozen(kw_only=True)
class Draft:
    """A smaller model: its file, and its size against the model's."""

    path: Path
    share: float


@attrs.frozen(kw_only=True)
class Head:
    """Layers trained to guess ahead: `kind` is llama-server's word, `where` says where they are."""

    kind: str
    count: int
    where: str


@attrs.frozen(kw_only=True)
class Method:
    """A way to guess: `flags` for llama-server, `length` the longest draft, `draft` the relative cost of a guess."""

    kind: str  # llama-server's word: ngram-simple, ngram-mod, draft-simple, draft-mtp
    name: str
    flags: Mapping[str, str]
    length: int
    draft: float = 0.0

    def lookup(self) -> Lookup | None:
        """Its guesses, where they can be replayed without the engine."""
        numbers = [int(value) for name, value in self.flags.items() if name.startswith("--spec-ngram")]
        if self.kind == "ngram-simple":
            return NgramSimple(*numbers)
        return NgramMod(*numbers) if self.kind == "ngram-mod" else None


def methods(model: GGUF, drafts: Sequence[Draft] = ()) -> list[Method]:
    """All that may be tried with `model`, cheapest to try first."""
    found = [
        Method(
            kind="ngram-simple", name=f"n-gram lookup, {size} tokens looked for, {most} drafted", length=most,
            flags={"--spec-type": "ngram-simple", "--spec-ngram-simple-size-n": str(size),
                   "--spec-ngram-simple-size-m": str(most)},
        )
        for size, most in SIMPLE
    ]  # fmt: skip
    found += [
        Method(
            kind="ngram-mod", name=f"n-grams across conversations, {size} tokens looked for, up to {most}", length=most,
            flags={"--spec-type": "ngram-mod", "--spec-ngram-mod-n-match": str(size),
                   "--spec-ngram-mod-n-min": str(least), "--spec-ngram-mod-n-max": str(most)},
        )
        for size, least, most in MODS
    ]  # fmt: skip
    for head in heads(model):
        if head.kind == "draft-mtp":
            share = head.count / max(model.get("{arch}.block_count", int) or 1, 1)
            flags = {"--spec-type": "draft-mtp", "--spec-draft-n-max": str(min(head.count, LENGTHS[0]) or 1)}
            name = "its own heads (MTP)"
            found.append(Method(kind=head.kind, name=name, flags=flags, length=head.count, draft=share))
    for draft in drafts:
        for length in LENGTHS:
            flags = {
                "--spec-type": "draft-simple", "--spec-draft-model": str(draft.path), "--spec-draft-n-max": str(length),
            }  # fmt: skip
            name = f"draft model {draft.path.stem}, {length} tokens"
            found.append(Method(kind="draft-simple", name=name, flags=flags, length=length, draft=draft.share))
    return found


def heads(model: GGUF) -> list[Head]:
    """The heads in a file: those of a whole model, or the file itself where it is nothing else."""
    found = []
    count = model.get("{arch}.nextn_predict_layers", int) or 0
    if count > 0 and any(".nextn." in tensor.name for tensor in model.tensors):
        found.append(Head(kind="draft-mtp", count=count, where="in the model itself"))
    if model.architecture in HEADS:
        found.append(Head(kind=HEADS[model.architecture], count=1, where="the file is a head, not a model"))
    return found


def fits(model: GGUF, draft: GGUF) -> bool:
    """Whether llama.cpp may take `draft` for `model`, as far as headers tell: it compares every word when it starts."""
    if draft.architecture in HEADS or not draft.parameters or draft.parameters >= model.parameters:
        return False
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        if model.get(key, str) != draft.get(key, str):
            return False
    for key in ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        if model.get(key, int) != draft.get(key, int):
            return False
    return abs(_words(model) - _words(draft)) <= VOCABULARY_APART


def usable(found: Iterable[Method], known: Collection[str]) -> list[Method]:
    """Those whose every flag an engine knows; all, where nothing is known of it."""
    return [method for method in found if not known or all(flag in known for flag in method.flags)]


def _words(model: GGUF) -> int:
    value = model.metadata.get("tokenizer.ggml.tokens")
    return value.count if isinstance(value, LongArray) else len(value) if isinstance(value, list) else 0
