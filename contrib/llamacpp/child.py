"""The child process that runs llama-server: started by its path, with nothing of VeloLLM imported.

    stdin    one line of JSON with the parameters; then nothing, until its end says that the parent is gone
    stdout   one line of JSON, `{"url": ...}`, when the model is loaded
    stderr   llama.cpp's log

The server has no stop of its own: the process is ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from importlib import import_module
from typing import Any, BinaryIO, NoReturn

__all__ = ["main", "server_parameters"]


def main() -> NoReturn:
    """Serve until the parent ends."""
    given = json.loads(sys.stdin.buffer.readline())
    report = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints belongs to the log
    _end_with_parent(sys.stdin.buffer)
    library: Any = import_module("xllamacpp")
    server = library.Server(server_parameters(library, given))
    report.write(json.dumps({"url": server.listening_address}).encode() + b"\n")
    report.close()
    while True:
        threading.Event().wait()


def server_parameters(library: Any, given: dict[str, Any]) -> Any:
    """`CommonParams` for what the parent asks; its keys are those of `Plan` and of `EmbeddedBackend`."""
    parameters = library.CommonParams()
    parameters.model.path = given["path"]
    parameters.model_alias = set(given["names"])
    parameters.api_keys = [given["key"]]
    parameters.port = given.get("port", 0)
    parameters.ui = False
    parameters.endpoint_metrics = True
    if given.get("slot_save_path"):
        parameters.slot_save_path = os.path.join(given["slot_save_path"], "")
    parameters.n_ctx = given["context"] * (1 if given["unified"] else given["slots"])
    parameters.n_parallel = given["slots"]
    parameters.kv_unified = given["unified"]
    parameters.cache_ram_mib = given["cache_mib"]
    parameters.cpuparams.n_threads = given["threads"]
    parameters.cpuparams_batch.n_threads = given["threads"]
    kind = getattr(library.ggml_type, f"GGML_TYPE_{given['kv_type'].upper()}")
    parameters.cache_type_k = kind
    parameters.cache_type_v = kind
    if given.get("flash_attention", "auto") != "auto":
        name = "ENABLED" if given["flash_attention"] == "on" else "DISABLED"
        parameters.flash_attn_type = getattr(library.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{name}")
    parameters.embedding = True
    if given["pooling"]:
        parameters.pooling_type = getattr(library.llama_pooling_type, f"LLAMA_POOLING_TYPE_{given['pooling'].upper()}")
    parameters.n_batch = parameters.n_ubatch = given["batch"]
    if given.get("speculative"):
        _speculate(library, parameters.speculative, given["speculative"])
    return parameters


def _speculate(library: Any, speculative: Any, wanted: dict[str, str]) -> None:
    """Set what llama-server's flags `--spec-*` say, whose names without that are the keys of `wanted`."""
    kind = wanted["type"].upper().replace("-", "_")
    speculative.types = [getattr(library.common_speculative_type, f"COMMON_SPECULATIVE_TYPE_{kind}")]
    for name, value in wanted.items():
        if name == "draft-model":
            speculative.draft.mparams.path = value
        for group in ("ngram-simple", "ngram-mod", "draft"):
            field = name.removeprefix(f"{group}-").replace("-", "_")
            if name.startswith(f"{group}-") and value.isdigit():
                setattr(getattr(speculative, group.replace("-", "_")), field, int(value))


def _end_with_parent(pipe: BinaryIO) -> None:
    """End this process when `pipe` does, which nobody but the parent can write to.

    A thread sees to it, but cannot run while a model loads, for the library keeps the interpreter's lock then; where
    the system can signal the end of a pipe, it does, and the default action of that signal is to end the process.
    """
    if hasattr(os, "O_ASYNC") and sys.platform == "linux":
        fcntl: Any = import_module("fcntl")
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        while pipe.read(1):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
