"""The child process that computes: started by its path, it imports VeloLLM from where its parent did.

stdin    one line of JSON with the parameters; then nothing, until its end says that the parent is gone
stdout   one line of JSON, `{"url": "127.0.0.1:PORT"}`, when the model is loaded
stderr   the log
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import sys
import threading
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from velollm.contrib.velo.backend import EngineBackend

__all__ = ["main", "serve"]


def main() -> None:
    """Serve until the parent ends."""
    given = json.loads(sys.stdin.buffer.readline())
    report = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints belongs to the log
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()
    sys.path[:] = given["sys_path"]
    asyncio.run(_main(given, report))


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


async def _main(given: dict[str, Any], report: Any) -> None:
    import logging

    from velollm.contrib.velo.backend import EngineBackend
    from velollm.errors import VeloError

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="E %(message)s")
    try:
        backend = EngineBackend(
            given["path"],
            name=given["name"],
            aliases=given["names"],
            plan=given["plan"],
            on_gpu_failure=lambda: os._exit(1),  # whoever started this process starts another, with a new context
        )
        await backend.start()
    except VeloError as error:
        sys.exit(f"E {error.message}")
    server = await asyncio.start_server(lambda *pipe: serve(backend, given["key"], *pipe), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    report.write(json.dumps({"url": f"{host}:{port}"}).encode() + b"\n")
    report.close()
    await server.serve_forever()


async def serve(backend: EngineBackend, key: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the calls of one connection, which begins with the key."""
    from velollm.contrib.velo.frames import read_call, read_frame

    shown = await read_frame(reader)
    tasks: dict[int, asyncio.Task[None]] = {}
    try:
        if shown is None or not hmac.compare_digest(shown, key.encode()):
            return
        while (frame := await read_frame(reader)) is not None:
            number, method, arguments = read_call(frame)
            if method == "cancel":
                if number in tasks:
                    tasks[number].cancel()
                continue
            task = asyncio.create_task(_answer(backend, writer, number, method, arguments))
            tasks[number] = task
            task.add_done_callback(partial(_forget, tasks, number))
    finally:
        for task in tasks.values():
            task.cancel()
        writer.close()


def _forget(tasks: dict[int, asyncio.Task[None]], number: int, _: asyncio.Task[None]) -> None:
    tasks.pop(number, None)


async def _answer(
    backend: EngineBackend, writer: asyncio.StreamWriter, number: int, method: str, arguments: tuple[Any, ...]
) -> None:
    from velollm.contrib.velo.frames import pack_answer, write_embeddings, write_error, write_event
    from velollm.errors import BackendError, VeloError

    try:
        if method in ("chat", "resume"):
            async with aclosing(getattr(backend, method)(*arguments)) as events:
                async for event in events:
                    writer.write(pack_answer(number, "event", write_event(event)))
                    await writer.drain()
            writer.write(pack_answer(number, "end"))
        elif method == "embed":
            writer.write(pack_answer(number, "result", write_embeddings(await backend.embed(*arguments))))
        elif method == "tokenize":
            model, text, add_special = arguments
            found = await backend.tokenize(model, text, add_special=add_special)
            writer.write(pack_answer(number, "result", found))
        elif method in ("count_tokens", "detokenize", "pulse"):
            writer.write(pack_answer(number, "result", await getattr(backend, method)(*arguments)))
        else:
            raise BackendError(f"the engine knows no {method!r}")
    except VeloError as error:
        writer.write(pack_answer(number, "error", write_error(error)))
    except ConnectionError:
        pass  # the parent is gone, and this process with it
    except Exception as error:
        import logging

        logging.getLogger("velollm.engine").exception("%s failed", method)
        failure = BackendError(f"the engine failed: {type(error).__name__}")
        writer.write(pack_answer(number, "error", write_error(failure)))


if __name__ == "__main__":
    main()
