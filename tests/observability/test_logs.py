"""One line a request, in text or JSON, that never holds a prompt, an answer or a key."""

from __future__ import annotations

import asyncio
import io
import logging
import os
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from support.asgi import ask
from support.backend import ScriptedBackend
from support.serving import served

from velollm.errors import BackendTimeout, VeloError
from velollm.observability.logs import LineHandler, TextFormatter, configure_logging

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "my secret prompt"}]}
ANSWER = ["my", " secret", " answer"]


class Out(io.StringIO):
    """What was logged, up to now."""

    def getvalue(self) -> str:
        logging.getLogger().handlers[0].flush()
        return super().getvalue()


@pytest.fixture
def log() -> Iterator[Any]:
    """A function that sets the log up and returns what it writes to; everything is put back at the end."""
    root, ours = logging.getLogger(), logging.getLogger("velollm")
    before = (list(root.handlers), root.level, ours.level, logging.logThreads, logging.logProcesses,
              logging.logMultiprocessing)  # fmt: skip

    def configure(style: str, level: str = "debug") -> io.StringIO:
        out = Out()
        configure_logging(level, style, out)
        return out

    yield configure
    root.handlers[:], level, own, logging.logThreads, logging.logProcesses, logging.logMultiprocessing = before
    root.setLevel(level)
    ours.setLevel(own)


async def test_a_line_in_json(log: Any) -> None:
    out = log("json")
    app = served(ScriptedBackend(ANSWER))
    await ask(app, "POST", CHAT, {**QUESTION, "stream": True}, x_request_id="mine-1", authorization="Bearer sk-secret")
    (line,) = [orjson.loads(text) for text in out.getvalue().splitlines()]
    assert line["message"] == "request"
    assert line["level"] == "info"
    assert line["time"].endswith("Z")
    expected = {
        "id": "mine-1", "method": "POST", "path": CHAT, "status": 200, "model": "tiny", "backend": "scripted",
        "outcome": "ok", "finish": "stop", "prompt_tokens": 5, "cached_tokens": 2, "completion_tokens": 3,
    }  # fmt: skip
    assert {name: line[name] for name in expected} == expected
    assert line["ttft_ms"] >= 0
    assert line["duration_ms"] >= line["ttft_ms"]


async def test_a_line_in_text(log: Any) -> None:
    out = log("text")
    await ask(served(ScriptedBackend(ANSWER)), "POST", CHAT, QUESTION, x_request_id="mine-1")
    (line,) = out.getvalue().splitlines()
    assert " INFO request id=mine-1 method=POST path=/v1/chat/completions status=200 model=tiny" in line


@pytest.mark.parametrize("style", ["text", "json"])
async def test_nothing_that_was_said_is_logged(log: Any, style: str) -> None:
    out = log(style)
    headers = {"authorization": "Bearer sk-secret", "x_api_key": "sk-secret", "cookie": "sk-secret"}
    bodies = [
        QUESTION,
        {**QUESTION, "stream": True},
        b'{"my secret',
        {"model": 5, "my secret": 1},
        {**QUESTION, "tools": "my secret"},
        {**QUESTION, "messages": [{"role": "my secret", "content": ""}]},
    ]
    for backend in (
        ScriptedBackend(ANSWER),
        ScriptedBackend(ANSWER, error=BackendTimeout("slow"), fail_after=2),
        ScriptedBackend(ANSWER, error=RuntimeError("a bug")),
    ):
        for body in bodies:
            try:
                await ask(served(backend), "POST", CHAT, body, **headers)
            except VeloError:
                pass  # broken off in mid-stream
    assert "a bug" in out.getvalue(), "failures of our own are told with their place"
    for line in out.getvalue().splitlines():
        assert "secret" not in line, line


@pytest.mark.parametrize("style", ["text", "json"])
async def test_no_name_makes_a_second_line(log: Any, style: str) -> None:
    out = log(style)
    for name in ("a\nb", "a\r\nb", "a\u2028b", "a\x85b", "\x1b[31mred", "\ud800", 'quo"te', "a b=c"):
        body = orjson.dumps({**QUESTION, "model": name}) if name.isascii() else b'{"model":"a\\u2028b\\u0085"}'
        await ask(served(ScriptedBackend()), "POST", CHAT, body, x_request_id=name.encode("ascii", "replace").decode())
        await ask(served(ScriptedBackend()), "GET", "/v1/models/" + name.encode("ascii", "replace").decode())
    lines = out.getvalue().split("\n")[:-1]
    assert len(lines) == 16
    assert not any(not line.isprintable() for line in lines)


async def test_failures_and_leavers_have_their_outcome(log: Any) -> None:
    out = log("json")
    app = served(ScriptedBackend(error=BackendTimeout("slow")))
    await ask(app, "POST", CHAT, QUESTION)
    await ask(app, "POST", CHAT, b"{")
    await ask(app, "GET", "/nowhere")
    slow, bad, nowhere = (orjson.loads(text) for text in out.getvalue().splitlines())
    assert (slow["status"], slow["outcome"]) == (504, "backend_timeout")
    assert (bad["status"], bad["outcome"]) == (400, "invalid_request")
    assert (nowhere["status"], nowhere["outcome"]) == (404, "path_not_found")


async def test_probes_are_quiet(log: Any) -> None:
    out = log("text", "info")
    app = served(ScriptedBackend())
    for path in ("/health", "/ready", "/metrics"):
        await ask(app, "GET", path)
    assert out.getvalue() == ""


def test_an_exception_stays_one_entry(log: Any) -> None:
    for style in ("text", "json"):
        out = log(style)
        try:
            raise ValueError("one\ntwo")
        except ValueError:
            logging.getLogger("velollm.test").exception("it failed:\nbadly")
        first, *rest = out.getvalue().splitlines()
        assert "it failed:\\nbadly" in first
        assert all(line.startswith("    ") for line in rest)
        assert bool(rest) == (style == "text")


async def test_lines_in_quick_succession_are_written_together(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, writes = log("text"), []
    monkeypatch.setattr(out, "write", lambda text: writes.append(text.count("\n")))
    logger = logging.getLogger("velollm.test")
    for _ in range(3):
        logger.info("line")
    assert writes == []
    await asyncio.sleep(0.1)
    assert writes == [3]
    logger.info("line")
    logger.warning("this cannot wait")
    assert writes == [3, 2]
    await asyncio.sleep(0.1)
    assert writes == [3, 2]


def test_without_a_loop_every_line_is_written_at_once(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, writes = log("text"), []
    monkeypatch.setattr(out, "write", writes.append)
    logging.getLogger("velollm.test").info("line")
    assert len(writes) == 1


async def test_a_factory_of_the_programs_own_is_asked_for_every_line(log: Any) -> None:
    out = log("json")

    class Own(logging.LogRecord):
        def getMessage(self) -> str:
            return "own " + super().getMessage()

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(Own)
    try:
        await ask(served(ScriptedBackend()), "POST", CHAT, QUESTION)
    finally:
        logging.setLogRecordFactory(before)
    assert orjson.loads(out.getvalue())["message"] == "own request"


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals like that here")
def test_a_terminal_that_is_closed_is_no_failure() -> None:
    ours, its = os.openpty()
    with os.fdopen(its, "w") as stream:
        handler = LineHandler(stream, TextFormatter())
        os.close(ours)
        for _ in range(2):
            handler.handle(logging.makeLogRecord({"name": "velollm", "levelno": logging.INFO, "msg": "lost"}))
            handler.flush()
        stream.flush()  # as Python does when it ends
