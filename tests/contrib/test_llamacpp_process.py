"""How a child is started: with the way its threads wait, and what the user has set before that."""

from __future__ import annotations

from pathlib import Path

import pytest

from velollm.contrib.llamacpp.process import LlamaProcess
from velollm.engine.llama_cpp import WAITING

pytestmark = pytest.mark.anyio
CHILD = """
import json, os, sys
sys.stdin.readline()
print(json.dumps({"url": [os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT")]}), flush=True)
sys.stdin.read()
"""


async def waits(folder: Path) -> str:
    (folder / "child.py").write_text(CHILD)
    process = LlamaProcess({}, name="x", child=folder / "child.py")
    try:
        return await process.start(20)
    finally:
        await process.stop()


async def test_threads_wait_as_those_of_our_own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in WAITING:
        monkeypatch.delenv(variable, raising=False)
    assert await waits(tmp_path) == str([WAITING["OMP_WAIT_POLICY"], WAITING["GOMP_SPINCOUNT"]])


async def test_what_the_user_has_set_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert await waits(tmp_path) == str(["active", "7"])
