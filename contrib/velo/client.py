"""Talks to the child process that computes: calls go out on one connection, answers come back by their numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from itertools import count
from typing import Any

from velollm.backend import Backend, Limits
from velollm.continuation import Proofs, Said
from velollm.contrib.velo.frames import (
    pack_call,
    read_answer,
    read_embeddings,
    read_error,
    read_event,
    read_frame,
    write_error,
)
from velollm.errors import BackendError, BackendProtocolError, BackendTimeout, BackendUnreachable
from velollm.messages import ChatEvent, ChatRequest, Embeddings, EmbedRequest, ModelInfo

__all__ = ["EngineClient"]

PULSE_SECONDS = 30.0  # an engine that takes longer for one step hangs


class EngineClient(Backend):
    """The engine at `url` (`host:port`), which wants to see `key`."""

    def __init__(self, url: str, key: str, *, name: str, limits: Limits) -> None:
        self.name = name
        self._place = url.rsplit(":", 1)
        self._key = key
        self._limits = limits
        self._proofs = Proofs()
        self._numbers = count()
        self._waiting: dict[int, asyncio.Queue[tuple[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    def chat(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Generate."""
        return self._stream("chat", request.replace(source=None))

    async def resumes(self, model: str) -> bool:
        """Whether it goes on with answers exactly: tried once."""
        return await self._proofs.ask(self, model)

    def resume(self, request: ChatRequest, said: Said) -> AsyncGenerator[ChatEvent, None]:
        """Go on with an answer."""
        return self._stream("resume", request.replace(source=None), said)

    async def _stream(self, method: str, *arguments: Any) -> AsyncGenerator[ChatEvent, None]:
        """Events. Where nothing comes for long, the engine is asked whether it lives."""
        number, answers = await self._call(method, *arguments)
        patience, ended = self._limits.first_byte, False
        try:
            while True:
                try:
                    async with asyncio.timeout(patience):
                        kind, value = await answers.get()
                except TimeoutError:
                    if patience == self._limits.first_byte:
                        raise BackendTimeout(
                            f"{self.name} did not begin its answer within {patience:g} seconds", backend=self.name
                        ) from None
                    await self.ready()  # others come first, then; it raises when the engine hangs
                    continue
                if kind == "event":
                    patience = self._limits.idle
                    yield read_event(value)
                    continue
                ended = True
                if kind == "error":
                    raise read_error(value)
                return
        finally:
            self._waiting.pop(number, None)
            if not ended:
                self._cancel(number)

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """One vector an input."""
        return read_embeddings(await self._ask("embed", request))

    async def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt."""
        counted: int = await self._ask("count_tokens", request.replace(source=None))
        return counted

    async def tokenize(self, model: str, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of `text`."""
        tokens: list[int] = await self._ask("tokenize", model, text, add_special)
        return tokens

    async def detokenize(self, model: str, tokens: list[int]) -> str:
        """Text of token ids."""
        text: str = await self._ask("detokenize", model, tokens)
        return text

    async def models(self) -> list[ModelInfo]:
        """Nobody asks here: the parent knows its model."""
        return []

    async def ready(self) -> None:
        """Return when the engine is between two steps; raise `BackendTimeout` when it never is."""
        try:
            async with asyncio.timeout(PULSE_SECONDS):
                await self._ask("pulse")
        except TimeoutError:
            raise BackendTimeout(f"{self.name} hangs", backend=self.name) from None

    def break_off(self, why: str) -> None:
        """End everything that is under way."""
        self._fail_all(BackendTimeout(f"{self.name}: {why}", backend=self.name))

    async def aclose(self) -> None:
        """Let go of the connection."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.wait({reading})
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # ---- inside ----

    async def _ask(self, method: str, *arguments: Any) -> Any:
        number, answers = await self._call(method, *arguments)
        ended = False
        try:
            kind, value = await answers.get()
            ended = True
        finally:
            self._waiting.pop(number, None)
            if not ended:
                self._cancel(number)
        if kind == "error":
            raise read_error(value)
        return value

    async def _call(self, method: str, *arguments: Any) -> tuple[int, asyncio.Queue[tuple[str, Any]]]:
        writer = await self._connected()
        number = next(self._numbers)
        answers = self._waiting[number] = asyncio.Queue()
        writer.write(pack_call(number, method, *arguments))
        return number, answers

    def _cancel(self, number: int) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack_call(number, "cancel"))

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None or self._writer.is_closing():
                host, port = self._place
                try:
                    async with asyncio.timeout(self._limits.connect):
                        reader, self._writer = await asyncio.open_connection(host, int(port))
                except (OSError, TimeoutError) as error:
                    raise BackendUnreachable(f"{self.name} cannot be reached", backend=self.name) from error
                key = self._key.encode()
                self._writer.write(len(key).to_bytes(4, "little") + key)
                self._reading = asyncio.create_task(self._read(reader, self._writer))
            return self._writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (frame := await read_frame(reader)) is not None:
                number, kind, value = read_answer(frame)
                if number in self._waiting:
                    self._waiting[number].put_nowait((kind, value))
        except (ValueError, TypeError):
            pass  # no frame: the child is not itself any more, and the connection ends
        finally:
            writer.close()
            self._fail_all(BackendProtocolError(f"{self.name} broke off its answer", backend=self.name))

    def _fail_all(self, error: BackendError) -> None:
        for answers in self._waiting.values():
            answers.put_nowait(("error", write_error(error)))
