"""One context size for each model, where every other size would make the engine load it again. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["ContextSizes"]

SMALLEST = 4096  # Ollama's own default: a smaller one saves little and soon costs a load
MOST_MODELS = 256


class ContextSizes:
    """`fixed` are the sizes of the settings, in tokens; for other models, the largest asked for so far counts."""

    def __init__(self, fixed: Mapping[str, int]) -> None:
        self._fixed = dict(fixed)
        self._largest: dict[str, int] = {}

    def ask(self, model: str, asked: object) -> None:
        """A request for `model` wants a context of `asked` tokens."""
        if type(asked) is not int or asked < 1 or model in self._fixed:
            return
        size = max(SMALLEST, 1 << (asked - 1).bit_length())
        if size > self._largest.get(model, 0):
            if len(self._largest) >= MOST_MODELS and model not in self._largest:
                del self._largest[next(iter(self._largest))]
            self._largest[model] = size

    def size(self, model: str, most: int | None) -> int | None:
        """The size to send, at most `most`, the model's own; None to leave it to the engine."""
        fixed = self._fixed.get(model)
        if fixed is not None:
            return fixed
        largest = self._largest.get(model)
        if largest is None or most is None:
            return largest
        return min(largest, most)
