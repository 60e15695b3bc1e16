"""What is asked: profiles by seed, and questions of one's own."""

from __future__ import annotations

import json

import pytest

from velollm.bench.dataset import read_questions
from velollm.bench.question import Question
from velollm.bench.workload import PROFILES, questions
from velollm.errors import ConfigError


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_the_same_seed_asks_the_same(name: str) -> None:
    one = questions(name, 12, seed=5)
    assert one == questions(name, 12, seed=5)
    other = questions(name, 12, seed=6)
    assert len({question.text for question in [*one, *other]}) == 24
    starts = {question.text[:24] for question in one} & {question.text[:24] for question in other}
    assert name in ("agent",) or not starts  # no cache of another run knows the beginning


@pytest.mark.parametrize("name", ["chat", "code", "rag", "agent", "prefix"])
def test_prompts_are_about_as_long_as_wanted(name: str) -> None:
    for size in (500, 1500):
        for question in questions(name, 4, seed=1, prompt=size, answer=7):
            text = question.text + (json.dumps(question.tools) if question.tools else "")
            assert size * 0.6 < len(text) / 4.6 < size * 1.5, name
            assert question.max_tokens == 7


def test_only_the_prefix_is_shared() -> None:
    asked = questions("prefix", 8, seed=3)
    systems = [question.messages[0]["content"] for question in asked]
    assert len(set(systems)) == 4
    assert systems[0] == systems[4]
    assert len({question.group for question in asked}) == 4
    assert len({question.messages[1]["content"] for question in asked}) == 8


def test_an_agent_has_tools_and_a_result() -> None:
    (question,) = questions("agent", 1, seed=0)
    assert [message["role"] for message in question.messages] == ["system", "user", "assistant", "tool"]
    assert {tool["function"]["name"] for tool in question.tools} >= {"read_file", "search"}


@pytest.mark.parametrize("wrong", [{"count": 0}, {"prompt": 0}, {"answer": -1}, {"name": "chta"}])
def test_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        questions(**({"name": "chat", "count": 1, "seed": 0} | wrong))  # type: ignore[arg-type]


# ---- questions of one's own ------------------------------------------------------------------------------------------

LONG = "a sentence that is long enough to be an answer"
SHAREGPT = [
    {"id": "1", "conversations": [{"from": "human", "value": "What is a lighthouse?"}, {"from": "gpt", "value": LONG}]},
    {"id": "2", "conversations": [{"from": "gpt", "value": LONG}]},
    {"id": "3", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": LONG}]},
    {
        "id": "4",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Tell me about the sea."},
            {"from": "gpt", "value": LONG},
            {"from": "human", "value": "And about the land, please?"},
            {"from": "gpt", "value": LONG * 2},
        ],
    },
]


def test_sharegpt() -> None:
    found = read_questions(json.dumps(SHAREGPT), "x.json")
    assert [len(question.messages) for question in found] == [1, 4]
    assert found[0].max_tokens == len(LONG) // 4
    assert found[1].messages[-1] == {"role": "user", "content": "And about the land, please?"}
    assert found[1].messages[0]["role"] == "system"


def test_lines_of_all_kinds() -> None:
    text = '{"prompt": "one", "output_len": 5}\n\n{"messages": [{"role": "user", "content": "two"}]}\n{not json\nfour\n'
    found = read_questions(text, "x.jsonl")
    assert [question.text for question in found] == ["one", "two", "{not json", "four"]
    assert found[0].max_tokens == 5


def test_as_many_as_wanted() -> None:
    text = "\n".join(f"prompt {number}" for number in range(10))
    few = read_questions(text, "x", count=4, seed=1)
    assert few == read_questions(text, "x", count=4, seed=1)
    assert len({question.text for question in few}) == 4
    assert len(read_questions(text, "x", count=25)) == 25


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no prompts"),
        ("[]", "holds no prompts"),
        ("[1]", r"x\[0\] is neither"),
        ('{"prompt": 3}', "has neither"),
        ('"a"\n{"prompt": "a", "max_tokens": "many"}', "x:2: max_tokens"),
        ('{"messages": [{"content": "no role"}]}', "has neither"),
        (json.dumps([SHAREGPT[1]]), "holds no prompts"),
    ],
)
def test_files_that_are_none(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_questions(text, "x")


def test_a_question_is_one_text() -> None:
    assert Question(inputs=("a", "b")).text == "a\nb"
    assert Question(prompt="p").text == "p"
