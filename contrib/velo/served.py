"""The engine in a child process, which is started anew when it crashes: a fault in native code ends no server."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import attrs

from velollm.backend import Backend
from velollm.contrib.llamacpp.embedded import EmbeddedBackend
from velollm.contrib.llamacpp.plan import this_machine
from velollm.contrib.llamacpp.process import LlamaProcess
from velollm.contrib.velo.capabilities import CAPABILITIES, kind_of
from velollm.contrib.velo.client import EngineClient
from velollm.contrib.velo.plan import EnginePlan, KVLayout, make_plan
from velollm.models.gguf import GGUF

__all__ = ["ServedEngine"]

CHILD = Path(__file__).with_name("child.py")


class ServedEngine(EmbeddedBackend):
    """The model `model` run by our engine, with the options of `EmbeddedBackend` (without `unified` and `replicate`).

    `num_blocks` is the size of the KV cache in blocks of 16 tokens, `batch` the largest step in tokens; `kv_layout`
    "unified" keeps it in one piece; with a `device` the kernels of velollm.gpu compute on that GPU.
    """

    capabilities = CAPABILITIES
    log = logging.getLogger("velollm.engine")

    def __init__(
        self,
        model: str,
        *,
        num_blocks: int | None = None,
        batch: int | None = None,
        kv_layout: KVLayout = "auto",
        device: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, **options)
        self.kind = kind_of(device)
        self.engine = f"the engine {self.kind}"
        del self._options["unified"]
        self._options |= {"num_blocks": num_blocks, "batch": batch, "kv_layout": kv_layout, "device": device}
        self._made: EnginePlan | None = None
        if self._file is not None:
            self._plan(self._file[1])  # what cannot be is said now

    async def slots(self, model: str) -> int | None:
        """How many conversations are computed at once; more wait in the engine."""
        _, header = await self._model_file()
        return self._plan(header).max_running

    def _plan(self, header: GGUF) -> EnginePlan:
        if self._made is None:  # once: later the model itself takes the memory that is measured
            self._made = make_plan(header, this_machine(), **self._options)
        return self._made

    def _process(self, parameters: dict[str, Any]) -> LlamaProcess:
        plan = {field.name: parameters.pop(field.name) for field in attrs.fields(EnginePlan)}
        known = {"plan": plan, "name": self.name, "sys_path": sys.path}
        return LlamaProcess({**parameters, **known}, name=self.name, child=CHILD, engine=self.engine)

    def _client(self, url: str, key: str) -> Backend:
        return EngineClient(url, key, name=self.name, limits=self._limits)
