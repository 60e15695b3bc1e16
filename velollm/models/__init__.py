"""Local models: GGUF files in the own folder, from the default wheel, a hub, or the store of Ollama."""

from velollm.models.catalog import DEFAULT_MODEL
from velollm.models.folder import InstalledModel, default_folder
from velollm.models.gguf import GGUF, GGUFError, read_gguf
from velollm.models.installer import InstallError, install
from velollm.models.lookup import find, list_installed

__all__ = [
    "DEFAULT_MODEL",
    "GGUF",
    "GGUFError",
    "InstallError",
    "InstalledModel",
    "default_folder",
    "find",
    "install",
    "list_installed",
    "read_gguf",
]
