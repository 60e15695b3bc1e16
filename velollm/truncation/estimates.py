"""How many tokens a prompt should have, learned from those that were counted; and whether fewer were read. No I/O.

Ollama cuts what does not fit, sometimes to half of the context: the count alone does not show it. What a text should
have come to does, where it is far from what was counted, and more than fits.
"""

from __future__ import annotations

from collections import OrderedDict

from velollm.messages import ChatRequest

__all__ = ["SMALLEST", "Estimates", "rough_tokens", "surely_short", "was_cut"]

ASCII_A_TOKEN = 4.2  # characters
OTHERS_A_TOKEN = 1.6
MESSAGE_TOKENS = 5
TOOL_CHARACTERS = 300
LEARNING = 0.2
LOWEST, HIGHEST = 0.25, 4.0
MOST_MODELS = 256
SMALLEST = 300  # tokens: shorter prompts teach nothing, the template outweighs them
SHORT_BODY = int(SMALLEST / 0.3125)  # bytes: no character has more than 0.3125 tokens for each of its bytes in UTF-8

NEAR = 0.03  # of the context: what is cut to fit ends so close below it
MUCH_LESS = 0.62  # what is cut to half comes to less; languages and code differ by less
MORE = 1.1
LESS = 0.88


class Estimates:
    """The tokens of prompts, by model: a rough count, corrected by what engines counted so far."""

    def __init__(self) -> None:
        self._factors: OrderedDict[str, float] = OrderedDict()

    def tokens(self, model: str, rough: float) -> float:
        """What a prompt of `rough` tokens should be counted as."""
        return rough * self._factors.get(model, 1.0)

    def learn(self, model: str, rough: float, counted: int) -> None:
        """A prompt that was surely read whole was counted."""
        if rough < SMALLEST or counted <= 0:
            return
        ratio = min(max(counted / rough, LOWEST), HIGHEST)
        known = self._factors.pop(model, None)
        self._factors[model] = ratio if known is None else known + LEARNING * (ratio - known)
        if len(self._factors) > MOST_MODELS:
            self._factors.popitem(last=False)


def rough_tokens(request: ChatRequest) -> float:
    """The tokens of a prompt by its length alone; languages with more in a character have more tokens."""
    if isinstance(request.prompt, list):
        return float(len(request.prompt))
    texts = [message.text for message in request.messages]
    texts += [call.arguments for message in request.messages for call in message.tool_calls]
    if request.prompt is not None:
        texts.append(request.prompt)
    tokens = float(MESSAGE_TOKENS * len(texts) + TOOL_CHARACTERS * len(request.tools) / ASCII_A_TOKEN)
    for text in texts:
        plain = len(text) if text.isascii() else sum(1 for character in text if character < "\x80")
        tokens += plain / ASCII_A_TOKEN + (len(text) - plain) / OTHERS_A_TOKEN
    return tokens


def surely_short(request: ChatRequest) -> bool:
    """Whether a prompt has fewer than `SMALLEST` tokens, which a short body shows without a look at its texts."""
    source = request.source
    texts = not request.tools and not isinstance(request.prompt, list)
    return source is not None and texts and len(source.body) < SHORT_BODY


def was_cut(counted: int, expected: float, context: int) -> bool:
    """Whether a prompt that should have `expected` tokens was cut to `counted`, in a context of so many."""
    if counted <= 0 or counted > context:
        return False
    if counted >= context * (1 - NEAR):
        return counted < LESS * expected
    return expected > MORE * context and counted < MUCH_LESS * expected
