"""`velollm bench`, `profile` and `speculative` on a real llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import write_tiny_gguf

from velollm import benchmark
from velollm.tuning.trials import EmbeddedTrial

from .conftest import Served

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedTrial]:
    pytest.importorskip("xllamacpp")
    file = write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")
    trial = EmbeddedTrial(file, {"--parallel": "4", "--ctx-size": "8192", "--threads": "1"}, os.environ)
    with trial:
        yield trial


def velollm(folder: Path, *words: str, key: str = "", status: int = 0) -> Any:
    environ = {**os.environ, "TRIAL_KEY": key or "none", "XDG_CONFIG_HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "velollm", *words, "--json"],
        env=environ, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


def test_every_profile_is_answered(engine: EmbeddedTrial) -> None:
    for profile in ("chat", "code", "prefix"):
        found = benchmark(
            engine.url, api_key=engine.key, profile=profile, num_prompts=4, max_concurrency=4, input_len=60,
            output_len=8, ignore_eos=True, goodput={"e2el": 60_000.0},
        )  # fmt: skip
        assert (found["completed"], found["total_output_tokens"]) == (4, 32)
        assert found["request_goodput"] == pytest.approx(found["request_throughput"])
        assert found["mean_ttft_ms"] < found["mean_e2el_ms"]
    assert found["prefix_cache_hit_rate"] >= 0


def test_a_file_is_run_and_asked(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    found = benchmark(str(file), profile="embeddings", num_prompts=3, input_len=20)
    assert (found["backend"], found["completed"], found["total_input_sequences"]) == ("backend", 3, 12)


def test_ollama_itself_and_what_stands_before_it(ollama_url: str, served: Served) -> None:
    """The same questions on Ollama's own wire and on OpenAI's, through the proxy: as many tokens each."""
    asked: dict[str, Any] = {"num_prompts": 2, "max_concurrency": 1, "input_len": 30, "output_len": 4}
    direct = benchmark(ollama_url, **asked)
    through = benchmark(served.url, **asked)
    assert direct["backend"] == "ollama"
    assert direct["total_output_tokens"] == through["total_output_tokens"] == 8
    assert direct["total_input_tokens"] > 40


def test_a_key_that_is_missing(engine: EmbeddedTrial, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "velollm", "bench", "--backend", engine.url, "--model", "tiny"],
        cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "401" in done.stderr


def test_saved_and_compared(engine: EmbeddedTrial, tmp_path: Path) -> None:
    words = ["bench", "--backend", engine.url, "--api-key-env", "TRIAL_KEY", "--num-prompts", "4", "--output-len", "6"]
    for name in ("a", "a", "b", "b"):
        velollm(tmp_path, *words, "--save", f"{name}.jsonl", key=engine.key)
    found = velollm(tmp_path, "bench", "--compare", "a.jsonl", "b.jsonl")
    assert {one["name"] for one in found["differences"]} >= {"throughput", "mean TTFT", "mean E2EL"}


def test_where_the_time_goes(engine: EmbeddedTrial, tmp_path: Path) -> None:
    words = ["--num-prompts", "3", "--output-len", "8", "--api-key-env", "TRIAL_KEY", "--trace", "trace.json"]
    found = velollm(tmp_path, "profile", "--backend", engine.url, *words, key=engine.key)
    assert {"door", "cache", "scheduling", "prefill", "decode"} <= set(found["phases"])
    for trace in found["traces"]:
        assert sum(trace["phases"].values()) == pytest.approx(trace["total"], rel=0.1)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_draft_is_predicted_and_tried(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    words = ["--num-prompts", "2", "--output-len", "24", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "velollm", "speculative", "--model", str(file), *words, "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["best"] else 1)
    assert found["costs"]
    assert {one["method"]["kind"] for one in found["estimates"]} == {"ngram-simple", "ngram-mod"}
    assert all("does not start" not in proof["words"] for proof in found["proofs"])
