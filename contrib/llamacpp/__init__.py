"""llama.cpp: a llama-server over HTTP (`LlamaServerBackend`), or an own one in a child process (`EmbeddedBackend`)."""

from velollm.contrib.llamacpp.embedded import EmbeddedBackend, from_hub
from velollm.contrib.llamacpp.server import LlamaServerBackend

__all__ = ["EmbeddedBackend", "LlamaServerBackend", "from_hub"]
