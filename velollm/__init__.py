"""VeloLLM: the autopilot for local LLM inference.

    app.add_middleware(VeloLLM, backend="ollama://localhost:11434")        # Starlette, FastAPI, Litestar
    flask_app.wsgi_app = VeloLLM.wsgi(flask_app.wsgi_app, backend="auto")  # Flask, Django

or run it alone: `velollm serve`. Importing this package is light; what a name needs is imported when it is used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velollm._version import __version__

if TYPE_CHECKING:
    from velollm.backend import Backend, open_backend
    from velollm.bench import benchmark
    from velollm.diagnosis import doctor
    from velollm.hardware import detect
    from velollm.messages import ChatEvent, ChatRequest, Message
    from velollm.middleware import VeloLLM
    from velollm.tuning import tune

__all__ = [
    "Backend",
    "ChatEvent",
    "ChatRequest",
    "Message",
    "VeloLLM",
    "__version__",
    "benchmark",
    "detect",
    "doctor",
    "open_backend",
    "tune",
]

_HOME = {
    "Backend": "velollm.backend",
    "ChatEvent": "velollm.messages",
    "ChatRequest": "velollm.messages",
    "Message": "velollm.messages",
    "VeloLLM": "velollm.middleware",
    "benchmark": "velollm.bench",
    "detect": "velollm.hardware",
    "doctor": "velollm.diagnosis",
    "open_backend": "velollm.backend",
    "tune": "velollm.tuning",
}

# A checkout keeps contrib/ and cuda/ beside the package, a wheel has them inside.
if not (Path(__file__).parent / "contrib").is_dir():
    __path__.append(str(Path(__file__).parent.parent))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
