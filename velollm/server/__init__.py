"""VeloLLM on its own: the app (for any ASGI server), and uvicorn underneath with deadlines for slow clients."""

from velollm.server.app import ServerApp, create_app

__all__ = ["ServerApp", "create_app"]
