"""Which requests can be continued at all, whatever the backend. No I/O."""

from __future__ import annotations

from velollm.continuation.said import Said
from velollm.errors import UnsupportedError
from velollm.messages import ChatRequest, TextPart

__all__ = ["check_resumable", "is_greedy", "obstacle"]

# Fields of engines that constrain the output, keep state of it beside the text, or describe it token by token.
CONSTRAINTS = (
    "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
    "regex", "ebnf", "response_format",
)  # fmt: skip
STATE = ("mirostat", "min_tokens", "best_of", "use_beam_search", "audio", "n_probs", "prompt_logprobs")


def is_greedy(request: ChatRequest) -> bool:
    """Whether the same prompt always has the same answer."""
    return request.temperature == 0 or request.top_k == 1


def obstacle(request: ChatRequest) -> str | None:
    """Why an answer to this request cannot be continued once it has begun; None where nothing stands against it.

    An engine that goes on from a text starts anew with everything that it keeps beside the text: the state of a
    grammar, of the random numbers of a seed, of a tool call, of other choices.
    """
    found = _asked_for(request)
    if found is not None:
        return found
    for name in CONSTRAINTS:
        if request.extra.get(name) is not None:
            return f"it asks for {name}"
    for name in STATE:
        if request.extra.get(name) or request.options.get(name):
            return f"it asks for {name}"
    for message in request.messages:
        if isinstance(message.content, list) and not all(isinstance(part, TextPart) for part in message.content):
            return "it holds more than text"
    return None


def _asked_for(request: ChatRequest) -> str | None:
    if request.n > 1:
        return "it asks for several answers"
    if request.tools:
        return "it may call tools"
    if request.response_format is not None:
        return "it asks for a format"
    if request.logprobs or request.top_logprobs:
        return "it asks for log probabilities"
    if request.echo or request.suffix is not None:
        return "it is no plain completion"
    if request.seed is not None and not is_greedy(request):
        return "it draws from a seed"
    return None


def check_resumable(request: ChatRequest, said: Said) -> None:
    """Raises `UnsupportedError` for what no backend goes on with by a prompt."""
    if said.reasoning:
        raise UnsupportedError("the answer cannot be continued: it has begun to reason")
    found = obstacle(request)
    if found is not None:
        raise UnsupportedError(f"the answer cannot be continued: {found}")
