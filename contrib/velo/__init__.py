"""A GGUF file run by VeloLLM's own engine: `EngineBackend`, in this process."""

from velollm.contrib.velo.backend import EngineBackend

__all__ = ["EngineBackend"]
