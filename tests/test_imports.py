"""Imports point downwards only, cores do no I/O, and `import velollm` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import velollm

PACKAGE = Path(velollm.__file__).parent
CONTRIB = next(path for root in velollm.__path__ if (path := Path(root) / "contrib").is_dir())

# From the ground up. What is not named is a subject of its own (cache, toolcalls, ...): its modules are cores, or
# layers where they know `backend`.
LEVELS: list[set[str]] = [
    {"_version", "errors", "messages"},
    {"config", "asgi"},
    {"(core)"},
    {"backend"},
    {"transport"},
    {"(layer)", "contrib", "discovery"},
    {"stack", "exchange", "forward", "door", "wrapped", "wrapped_wsgi"},
    {"middleware", "wsgi"},
    {"server"},
    {"commands", "cli", "__main__"},
]
LEVEL = {name: number for number, names in enumerate(LEVELS) for name in names}
CORE, LAYER = LEVEL["(core)"], LEVEL["(layer)"]
# These stay sans I/O, whatever else grows beside them.
PURE = ("velollm.api", "velollm.messages", "velollm.errors", "velollm.toolcalls", "velollm.cache")
IMPURE = (".layer", ".stores", ".embedder", ".onnx")  # of those, the parts that meet the world
IO = frozenset({"asyncio", "anyio", "socket", "subprocess", "httpx", "urllib.request", "http.client"})


@cache
def modules() -> dict[str, Path]:
    """Every module of VeloLLM, by its name once installed."""
    found = {}
    for root, name in ((PACKAGE, "velollm"), (CONTRIB, "velollm.contrib")):
        for path in root.rglob("*.py"):
            parts = [part for part in path.relative_to(root).with_suffix("").parts if part != "__init__"]
            found[".".join((name, *parts))] = path
    return found


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """What a file imports, wherever in it, with the lines; not what only type checkers read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:  # `from velollm.api import openai` imports a module
                inner = f"{node.module}.{alias.name}"
                yield (inner if inner in modules() else node.module), node.lineno


def at_once(path: Path) -> set[str]:
    """What is imported of our own while the file is loaded."""
    lines = {node.lineno for node in ast.parse(path.read_text(encoding="utf-8")).body}
    return {name for name, line in imports(path) if line in lines and name.startswith("velollm")}


@cache
def level(module: str) -> int:
    part = [*module.split("."), ""][1]
    if part in LEVEL:
        return LEVEL[part]
    if part == "":
        return -1  # the package itself: names nothing but its version
    known = {name.split(".")[1] for name in own_imports(module)}
    return LAYER if known & {"backend", "transport", "discovery"} else CORE


@cache
def own_imports(module: str) -> list[str]:
    return [name for name, _ in imports(modules()[module]) if name.startswith("velollm.")]


def same_subject(module: str, other: str) -> bool:
    """A subject's door (its `__init__`) offers its layer as well."""
    return module.split(".")[1] == other.split(".")[1]


def test_imports_point_downwards() -> None:
    upwards = [
        f"{path}:{line} imports {imported}"
        for module, path in modules().items()
        for imported, line in imports(path)
        if imported.startswith("velollm.") and level(module) < level(imported) and module != "velollm"
        if level(module) != CORE or level(imported) != LAYER or not same_subject(module, imported)
    ]
    assert upwards == []


def test_no_two_modules_import_each_other() -> None:
    """Not while they are loaded: a circle works only for whoever comes first."""
    graph = {module: at_once(path) - {module} for module, path in modules().items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for name in graph.get(module, ()):
                visit(name, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("prefix", PURE)
def test_cores_do_no_io(prefix: str) -> None:
    found = [
        f"{path}:{line} imports {imported}"
        for module, path in modules().items()
        if module.startswith(prefix) and not any(part in module for part in IMPURE)
        for imported, line in imports(path)
        if imported in IO
    ]
    assert found == []


def loaded_by(code: str) -> set[str]:
    """The modules that are loaded after `code` ran in a new interpreter."""
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(shown.stdout.split())


def test_import_is_light() -> None:
    loaded = loaded_by("import velollm")
    heavy = {"numpy", "onnxruntime", "cuda", "httpx", "httptools", "starlette", "uvicorn", "orjson", "attrs", "asyncio"}
    assert not loaded & heavy
    assert {name for name in loaded if name.startswith("velollm.")} <= {"velollm._version"}


def test_middleware_needs_neither_server_nor_models() -> None:
    loaded = loaded_by("from velollm import VeloLLM, open_backend, ChatRequest")
    assert not loaded & {"numpy", "onnxruntime", "cuda", "xllamacpp", "uvicorn", "prometheus_client", "huggingface_hub"}
    assert not {name for name in loaded if name.startswith(("velollm.server", "velollm.commands", "velollm.config"))}


def test_public_names() -> None:
    assert sorted(velollm.__all__) == velollm.__dir__()
    assert set(velollm.__all__) >= {
        "Backend", "ChatEvent", "ChatRequest", "Message", "VeloLLM", "__version__", "open_backend",
    }  # fmt: skip
    for name in velollm.__all__:
        assert getattr(velollm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Velo'"):
        _ = velollm.Velo


@pytest.mark.parametrize("name", sorted(modules()))
def test_what_a_module_offers_is_there(name: str) -> None:
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:  # of an extra that is not installed
        if (error.name or "").startswith("velollm"):
            raise
        pytest.skip(f"{error.name} is not installed")
    for offered in getattr(module, "__all__", ()):
        assert hasattr(module, offered), f"{name}.__all__ names {offered}"
