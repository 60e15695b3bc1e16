"""Placing requests on the slots of a llama-server: the choice by itself, and against a scripted server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from velollm.backend import open_backend
from velollm.collector import Collector
from velollm.contrib.llamacpp.process import slots_folder
from velollm.contrib.llamacpp.replication import text_of
from velollm.contrib.llamacpp.slots import WORTH, Choice, Saved, SlotBook, common_length
from velollm.messages import ChatRequest, Message, Source

pytestmark = pytest.mark.anyio

PREFIX = "p" * (2 * WORTH)


@given(st.text("ab", max_size=40), st.text("ab", max_size=40))
def test_the_common_beginning(one: str, other: str) -> None:
    length = common_length(one, other)
    assert one[:length] == other[:length]
    assert length == min(len(one), len(other)) or one[length] != other[length]


def test_conversations_stay_and_strangers_go_where_least_is_lost() -> None:
    book = SlotBook(3, "x")
    slots = [book.choose(f"{letter}" * (2 * WORTH), letter).slot for letter in "abc"]
    assert sorted(slots) == [0, 1, 2]
    assert book.idle == 0
    for slot in slots:
        book.release(slot)
    assert book.choose("b" * (2 * WORTH) + "more", "b").slot == slots[1]
    assert book.choose("d", "d").slot == slots[0], "the longest unused"


def test_the_second_is_primed_and_the_rest_restored() -> None:
    book = SlotBook(4, "x")
    assert book.choose(PREFIX + "1", "first") == Choice(0)
    assert book.choose(PREFIX + "2", "second") == Choice(1, prime="first", shared=PREFIX)
    saved = Saved(book.file_name(), PREFIX, 600)
    book.keep(saved)
    assert book.choose(PREFIX + "3", "third") == Choice(2, restore=saved)
    book.release(1)
    assert book.choose(PREFIX + "4", "fourth") == Choice(1), "it has it already"
    book.drop(saved.name)
    assert book.choose(PREFIX + "5", "fifth").prime is not None


def test_files_are_written_over() -> None:
    book = SlotBook(1, "x")
    names = [book.file_name() for _ in range(4)]
    assert names[:2] == names[2:]
    assert len(set(names)) == 2


def test_folders_of_processes_that_were_killed_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"velollm-slots-{ended.pid}-abc", "velollm-slots-other-abc", f"velollm-slots-{os.getpid()}-abc"):
        (tmp_path / name).mkdir()
    (tmp_path / f"velollm-slots-{ended.pid}-abc" / "file").write_bytes(b"slot")
    made = Path(slots_folder(tmp_path))
    assert made.stat().st_mode & 0o77 == 0
    left = {path.name for path in tmp_path.iterdir()} - {made.name}
    assert left == {"velollm-slots-other-abc", f"velollm-slots-{os.getpid()}-abc"}


class Server:
    """A llama-server of `slots` slots that knows what is in them: one token a word, in memory and in files."""

    def __init__(self, slots: int = 4, saves: bool = True) -> None:
        self.slots: list[list[str]] = [[] for _ in range(slots)]
        self.files: dict[str, list[str]] = {}
        self.saves = saves
        self.computed = 0
        self.busy = False
        self.recurrent = False
        self.seen: list[str] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, orjson.loads(await request.aread() or b"{}")
        self.seen.append(path)
        action = parse_qs(request.url.query.decode()).get("action", [""])[0]
        if path.startswith("/slots/"):
            return self._act(int(path.removeprefix("/slots/")), action, body)
        answers: dict[str, Callable[[], Any]] = {
            "/props": lambda: {"total_slots": len(self.slots)},
            "/slots": lambda: [{"id": 0, "is_processing": self.busy}],
            "/apply-template": lambda: {"prompt": body["messages"][0]["content"]},
            "/tokenize": lambda: {"tokens": [int(word) for word in body["content"].split()]},
            "/completion": lambda: self._compute(body["id_slot"], list(map(str, body["prompt"]))),
        }
        if path in answers:
            return httpx.Response(200, json=answers[path]())
        assert path == "/v1/chat/completions"
        words = body["messages"][0]["content"].split()
        cached = self._compute(body["id_slot"], words)["cached"] if "id_slot" in body else 0
        await asyncio.sleep(0.02)
        return httpx.Response(
            200,
            json={
                "choices": [{"index": 0, "message": {"content": f"{body.get('id_slot')}"}, "finish_reason": "stop"}],
                "usage": {
                    "prompt_tokens": len(words),
                    "completion_tokens": 1,
                    "prompt_tokens_details": {"cached_tokens": cached},
                },
            },
        )

    def _act(self, slot: int, action: str, body: Any) -> httpx.Response:
        if not self.saves:
            return httpx.Response(501, json={"error": {"message": "Start it with `--slot-save-path`"}})
        if action == "save":
            self.files[body["filename"]] = self.slots[slot][:]
        elif action == "restore" and body["filename"] in self.files:
            self.slots[slot] = self.files[body["filename"]][:]
        else:
            return httpx.Response(400, json={"error": {"message": "Invalid action"}})
        return httpx.Response(200, json={"id_slot": slot})

    def _compute(self, slot: int, words: list[str]) -> dict[str, int]:
        known = self.slots[slot]
        cached = next((at for at, pair in enumerate(zip(known, words, strict=False)) if pair[0] != pair[1]), None)
        cached = min(len(known), len(words) - 1) if cached is None else cached
        cached = 0 if self.recurrent else cached
        self.slots[slot] = words
        self.computed += len(words) - cached
        return {"cached": cached}


def prompt(own: int) -> str:
    return " ".join(["1000"] * 500 + [str(own)] * 10)


async def ask(backend: Any, text: str, **more: Any) -> str:
    collector = Collector()
    async for event in backend.chat(ChatRequest(messages=[Message(role="user", content=text)], **more)):
        collector.add(event)
    return str(collector.answer().choices[0].text)


async def together(server: Server, count: int, rounds: int = 1) -> list[str]:
    async with open_backend("llamacpp://engine", transport=httpx.MockTransport(server)) as backend:
        answers: list[str] = []
        for number in range(rounds):
            answers += await asyncio.gather(*(ask(backend, prompt(100 * number + one)) for one in range(count)))
        return answers


async def test_what_is_shared_is_computed_twice_and_no_more() -> None:
    server = Server()
    answers = await together(server, 8)
    assert len(server.files) == 1
    assert server.computed <= 2 * 510 + 8 * 11
    assert set(answers) == {"0", "1", "2", "3"}
    alone = Server(saves=False)
    assert set(await together(alone, 8)) == {"None"}, "where nothing can be saved, the server chooses"


async def test_a_server_that_others_use_chooses_itself() -> None:
    server = Server()
    server.busy = True
    assert set(await together(server, 4)) == {"None"}
    assert not server.files


@pytest.mark.parametrize(("status", "body"), [(200, {}), (404, {"error": "none"}), (400, {"error": "bad request"})])
async def test_servers_that_are_none_of_this(status: int, body: Any) -> None:
    server = Server()
    server._act = lambda *_: httpx.Response(status, json=body)  # type: ignore[method-assign]
    assert set(await together(server, 4)) == {"None"}


async def test_what_is_not_used_is_given_up() -> None:
    server = Server()
    server.recurrent = True
    answers = await together(server, 8, rounds=3)
    assert answers[-1] == "None"


async def test_the_clients_own_slot_and_bytes() -> None:
    server = Server()
    async with open_backend("llamacpp://engine", transport=httpx.MockTransport(server)) as backend:
        assert await ask(backend, "1 2", extra={"id_slot": 3}) == "3"
        payload = {"messages": [{"role": "user", "content": "1 2"}], "made_up": 7}
        source = Source(wire="openai.chat", body=orjson.dumps(payload), payload=payload)
        assert await ask(backend, "1 2", source=source) == "0"


async def test_one_that_leaves_gives_its_slot_back() -> None:
    server = Server(slots=2)
    async with open_backend("llamacpp://engine", transport=httpx.MockTransport(server)) as backend:
        for _ in range(3):
            tasks = [asyncio.create_task(ask(backend, prompt(one))) for one in range(6)]
            await asyncio.sleep(0.03)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert await ask(backend, prompt(9)) in ("0", "1")


def test_a_short_conversation_stays_where_it_is() -> None:
    book = SlotBook(3, "x")
    first = ChatRequest(messages=[Message(role="user", content="Count slowly.")])
    slot = book.choose(text_of(first), first).slot
    book.release(slot)
    stranger = ChatRequest(messages=[Message(role="user", content="What is the capital of France?")])
    other = book.choose(text_of(stranger), stranger).slot
    book.release(other)
    assert other != slot
    turns = [*first.messages, Message(role="assistant", content="One."), Message(role="user", content="Go on.")]
    following = first.replace(messages=turns)
    assert book.choose(text_of(following), following).slot == slot
