"""Profiles: what kind of work is asked, and how much of it. The same seed makes the same questions.

Each text begins with a word of the seed, so that no run finds its prompts in a cache of another one; within a run, only
what a profile says it shares is shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import attrs

from velollm.bench.material import ASSISTANT, TOOLS, passage, program, subject
from velollm.bench.question import JSON, Question
from velollm.errors import ConfigError

__all__ = ["ALIASES", "PROFILES", "Profile", "profile_name", "questions"]

GROUPS = 4
SPREAD = 0.3  # of the lengths of prompts, as the logarithm's deviation
EMBEDDED_AT_ONCE = 4


@attrs.frozen(kw_only=True)
class Profile:
    """`prompt` and `answer` are tokens, about; `make` writes a question; `embeds` says that vectors are asked for.

    Prompts differ in length, unless they are `even`.
    """

    name: str
    about: str
    prompt: int
    answer: int
    make: Callable[[Random, str, int, int], Question]
    embeds: bool = False
    even: bool = False


def questions(
    name: str, count: int, *, seed: int, prompt: int | None = None, answer: int | None = None, salt: str = ""
) -> list[Question]:
    """`count` questions of profile `name`, with prompts and answers of about so many tokens (default: the profile's).

    Another `salt` makes the same questions new to a cache: it stands at the beginning of each.

    Raises `ConfigError` for a profile that there is not, or counts below 1.
    """
    profile = PROFILES.get(profile_name(name))
    if profile is None:
        raise ConfigError(f"there is no profile {name!r}: {', '.join(PROFILES)}")
    for word, value in (("num_prompts", count), ("input_len", prompt), ("output_len", answer)):
        if value is not None and value < 1:
            raise ConfigError(f"{word} must be at least 1, not {value}")
    random = Random(seed)  # noqa: S311 -- no secret
    run = f"{random.getrandbits(32):08x}{salt}"
    made = []
    for number in range(count):
        mark = f"{run}-{number}"
        factor = 1.0 if profile.even else random.lognormvariate(0.0, SPREAD)
        size = prompt or max(8, round(profile.prompt * factor))
        made.append(profile.make(random, mark, size, answer or profile.answer))
    return made


def profile_name(name: str) -> str:
    """The name that `PROFILES` has for what is called `name`."""
    return ALIASES.get(name, name)


def _chat(random: Random, mark: str, size: int, answer: int) -> Question:
    about = subject(random)
    text = f"Letter {mark}. {passage(random, size - 24) if size > 40 else ''}\nTell me a long story about {about}."
    return Question(messages=(_user(text),), max_tokens=answer)


def _code(random: Random, mark: str, size: int, answer: int) -> Question:
    text = f"# module {mark}\n{program(random, size - 30)}\nWrite tests for each of these functions. Only code, please."
    return Question(messages=(_user(text),), max_tokens=answer)


def _rag(random: Random, mark: str, size: int, answer: int) -> Question:
    each = max(20, (size - 40) // 5)
    parts = [f"[{number}] {passage(random, each)}" for number in range(1, 6)]
    text = f"Documents {mark}\n" + "\n\n".join(parts) + "\n\nWhat do these documents have in common? Name the sources."
    return Question(messages=(_user(text),), max_tokens=answer)


def _agent(random: Random, mark: str, size: int, answer: int) -> Question:
    """The third turn of an agent: a task, a call, its result."""
    path = f"src/{random.choice('abcdefgh')}_{mark.replace('-', '_')}.py"
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "read_file", "arguments": f'{{"path": "{path}"}}'},
    }
    messages: tuple[JSON, ...] = (
        {"role": "system", "content": ASSISTANT},
        _user(f"Task {mark}: look into {path} and tell me what is wrong there."),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "name": "read_file", "content": program(random, size - 420)},
    )
    return Question(messages=messages, tools=TOOLS, max_tokens=answer)


def _prefix(random: Random, mark: str, size: int, answer: int) -> Question:
    """One of four long instructions, word for word the same within a run, and a short question of its own."""
    run, _, number = mark.partition("-")
    group = int(number) % GROUPS
    shared = passage(Random(f"{run}{group}"), size - 40)  # noqa: S311 -- no secret
    system: JSON = {"role": "system", "content": f"Handbook {run} {group}. {shared}"}
    asked = f"Question {mark}: tell me about {subject(random)}."
    return Question(messages=(system, _user(asked)), max_tokens=answer, group=f"prefix {group}")


def _embeddings(random: Random, mark: str, size: int, answer: int) -> Question:
    texts = tuple(f"Text {mark} {place}. {passage(random, size - 8)}" for place in range(EMBEDDED_AT_ONCE))
    return Question(inputs=texts)


def _user(text: str) -> JSON:
    return {"role": "user", "content": text}


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="chat", about="short questions, long answers", prompt=60, answer=128, make=_chat),
        Profile(name="code", about="a source file and tests to write for it", prompt=500, answer=200, make=_code),
        Profile(name="rag", about="five documents and a question: long prompts", prompt=1500, answer=64, make=_rag),
        Profile(name="agent", about="tools, and the result of a call", prompt=800, answer=64, make=_agent),
        Profile(name="prefix", about="long instructions that many requests share", prompt=900, answer=32, make=_prefix,
                even=True),
        Profile(name="sweep", about="chat with 1, 2, 4, ... clients at once", prompt=60, answer=64, make=_chat),
        Profile(
            name="embeddings", about="four texts a request", prompt=60, answer=1, make=_embeddings, embeds=True
        ),
    )
}  # fmt: skip
# What else people call them.
ALIASES: Mapping[str, str] = {
    "long-prompt": "rag",
    "tools": "agent",
    "shared-prefix": "prefix",
    "throughput": "sweep",
    "embed": "embeddings",
}
