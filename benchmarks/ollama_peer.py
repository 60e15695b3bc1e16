"""An Ollama of its own for a measurement: on a free port, with a store of its own, and one model, `bench`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from harness import free_port

from velollm.backend import Backend, open_backend
from velollm.errors import BackendError

__all__ = ["ollama"]

START_SECONDS = 30


@asynccontextmanager
async def ollama(binary: str | None, model: Path) -> AsyncIterator[Backend | None]:
    """The Ollama at `binary` at its defaults, with the GGUF file `model`; None without `binary`."""
    if binary is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        place = f"127.0.0.1:{free_port()}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
        environment |= {"OLLAMA_HOST": place, "OLLAMA_MODELS": folder}
        modelfile = Path(folder) / "Modelfile"
        modelfile.write_text(f"FROM {model}\n")
        server = subprocess.Popen(
            [binary, "serve"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            async with open_backend(f"ollama://{place}") as backend:
                await _ready(backend)
                made = await asyncio.create_subprocess_exec(
                    binary, "create", "bench", "-f", str(modelfile), env=environment,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                if await made.wait():
                    raise RuntimeError("ollama create failed")
                yield backend
        finally:
            server.terminate()
            server.wait()


async def _ready(backend: Backend) -> None:
    for _ in range(10 * START_SECONDS):
        try:
            return await backend.ready()
        except BackendError:
            await asyncio.sleep(0.1)
    raise RuntimeError("Ollama does not start")
