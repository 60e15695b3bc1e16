"""Which variables each version of Ollama reads, from its `envconfig/config.go` at every release up to 0.32.15."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import TypeAlias

__all__ = ["DEAD", "VARIABLES", "known_variables", "parse_help", "parse_version"]

Version: TypeAlias = tuple[int, ...]

# Name: first version that reads it. Those that a later version dropped are in DEAD, and never emitted.
VARIABLES: Mapping[str, Version] = MappingProxyType(
    {
        "OLLAMA_DEBUG": (0, 1, 34),
        "OLLAMA_LLM_LIBRARY": (0, 1, 34),
        "OLLAMA_MAX_LOADED_MODELS": (0, 1, 34),
        "OLLAMA_MAX_QUEUE": (0, 1, 34),
        "OLLAMA_NOPRUNE": (0, 1, 34),
        "OLLAMA_NUM_PARALLEL": (0, 1, 34),
        "OLLAMA_ORIGINS": (0, 1, 34),
        "OLLAMA_FLASH_ATTENTION": (0, 1, 39),
        "OLLAMA_HOST": (0, 1, 39),
        "OLLAMA_KEEP_ALIVE": (0, 1, 39),
        "OLLAMA_MODELS": (0, 1, 39),
        "OLLAMA_NOHISTORY": (0, 1, 39),
        "OLLAMA_SCHED_SPREAD": (0, 1, 45),
        "OLLAMA_GPU_OVERHEAD": (0, 3, 10),
        "OLLAMA_LOAD_TIMEOUT": (0, 3, 10),
        "OLLAMA_KV_CACHE_TYPE": (0, 5, 0),
        "OLLAMA_CONTEXT_LENGTH": (0, 5, 13),
        "OLLAMA_AUTH": (0, 8, 0),
        "OLLAMA_REMOTES": (0, 12, 0),
        "OLLAMA_VULKAN": (0, 12, 11),
        "OLLAMA_EDITOR": (0, 16, 0),
        "OLLAMA_NO_CLOUD": (0, 16, 2),
        "OLLAMA_DEBUG_LOG_REQUESTS": (0, 18, 3),
        "OLLAMA_MAX_TRANSFER_STREAMS": (0, 23, 3),
        "OLLAMA_GO_TEMPLATE": (0, 30, 0),
        "OLLAMA_IGPU_ENABLE": (0, 30, 0),
    }
)
# Name: what to do instead. The last four were never variables, but are often set.
DEAD: Mapping[str, str] = MappingProxyType(
    {
        "OLLAMA_NEW_ENGINE": "nothing: the engine is chosen by the model",
        "OLLAMA_MULTIUSER_CACHE": "nothing: removed",
        "OLLAMA_NEW_ESTIMATES": "nothing: removed",
        "OLLAMA_INTEL_GPU": "OLLAMA_VULKAN=1",
        "OLLAMA_MAX_VRAM": "OLLAMA_GPU_OVERHEAD",
        "OLLAMA_TMPDIR": "nothing: removed",
        "OLLAMA_RUNNERS_DIR": "nothing: removed",
        "OLLAMA_NUM_CTX": "OLLAMA_CONTEXT_LENGTH, or num_ctx in the request",
        "OLLAMA_NUM_BATCH": "num_batch in the request or the Modelfile",
        "OLLAMA_NUM_GPU": "num_gpu in the request or the Modelfile",
        "OLLAMA_NUM_THREAD": "num_thread in the request or the Modelfile",
    }
)
ALWAYS: Version = (0, 1, 39)
HELP = re.compile(r"^\s+(OLLAMA_[A-Z_]+)\s", re.MULTILINE)
NUMBER = re.compile(r"v?(\d{1,4})\.(\d{1,4})\.(\d{1,6})")
# `serve --help` leaves these out of its list, though every version since reads them.
UNLISTED = frozenset({"OLLAMA_NUM_PARALLEL", "OLLAMA_KEEP_ALIVE", "OLLAMA_FLASH_ATTENTION"})


def parse_version(text: str) -> Version:
    """`(0, 17, 4)` of `0.17.4` or `v0.17.4-rc1`; empty for none, and for the 0.0.0 of a build by hand."""
    match = NUMBER.match(text.strip())
    version = tuple(int(part) for part in match.groups()) if match else ()
    return version if any(version) else ()


def parse_help(text: str) -> frozenset[str]:
    """The variables that `ollama serve --help` lists."""
    return frozenset(HELP.findall(text))


def known_variables(version: str, help_text: str = "") -> Collection[str]:
    """The variables that this version reads: by its own help where that is at hand, else by its number.

    For a version of which nothing is known, those that every version since 0.1.39 reads.
    """
    listed = parse_help(help_text)
    number = parse_version(version)
    by_number = {name for name, first in VARIABLES.items() if first <= (number or ALWAYS)}
    if not listed:
        return frozenset(by_number)
    return (listed & VARIABLES.keys()) | (UNLISTED & by_number)
