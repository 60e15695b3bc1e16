"""The binding: other builds are refused before anything is done with them; the vocabulary; constraints by hand."""

from __future__ import annotations

import ctypes.util
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny_gguf

pytest.importorskip("xllamacpp", reason="the extra llamacpp is not installed")

from velollm.engine import EngineCore, JobSpec, SamplingParams, llama_cpp
from velollm.engine.constraints import Grammars
from velollm.engine.llama_runner import LlamaCppRunner, LlamaModel
from velollm.errors import ConfigError, RequestError, VeloError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LlamaModel:
    return LlamaModel(write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def test_another_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the llama"):
        llama_cpp.load_library(ctypes.util.find_library("c"))
    with pytest.raises(ConfigError, match="is not the llama"):
        llama_cpp.load_library(str(tmp_path / "none.so"))


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp.load_library.cache_clear()
    monkeypatch.setattr(llama_cpp, "version", lambda name: "2027.1.1")
    with pytest.raises(ConfigError, match=r"version 2027\.1\.1"):
        llama_cpp.load_library()


def test_other_defaults_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp.load_library.cache_clear()
    monkeypatch.setitem(llama_cpp.CONTEXT_DEFAULTS, "n_batch", 77)
    with pytest.raises(ConfigError, match="default of n_batch is 2048 there, not 77"):
        llama_cpp.load_library()


def test_the_vocabulary(model: LlamaModel) -> None:
    words = model.vocabulary
    text = "the quick brown fox, größer als 7"
    tokens = words.encode(text)
    assert b"".join(map(words.piece, tokens)).decode() == words.decode(tokens) == text
    (begin,) = words.encode("<|im_start|>", parse_special=True)
    assert (words.piece(begin), words.name(begin)) == (b"", b"<|im_start|>")
    assert len(words.encode("<|im_start|>")) > 1, "text is not taken for a control token"
    assert words.is_end(words.eos)
    assert words.encode("a\ud800b\0c")
    with pytest.raises(RequestError, match="between 0 and 511"):
        words.decode([1, 512])


def test_what_a_schema_allows(model: LlamaModel) -> None:
    grammars, words = Grammars(model.library, model.vocabulary), model.vocabulary
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    constraint = grammars.json_schema(schema)()
    said = b""
    random = np.random.default_rng(1)
    while not constraint.done:
        logits = constraint.restrict(random.standard_normal(words.size, dtype=np.float32))
        token = int(logits.argmax())
        twin = constraint.copy()
        for one in (constraint, twin):
            one.accept(token)
        assert twin.done == constraint.done
        said += words.piece(token)
    assert said in (b'{"a": "x"}', b'{"a": "y"}')


def test_a_small_step(model: LlamaModel) -> None:
    core = EngineCore(LlamaCppRunner(model, 16, batch=8, threads=1), model.vocabulary)
    job = core.add(JobSpec(prompt=[1] * 30, max_tokens=3, sampling=SamplingParams(temperature=0)))
    while not core.idle:
        assert all(not isinstance(update, VeloError) for _, update in core.step())
    assert job.num_generated == 3
    core.runner.close()


def test_types_that_there_are_not(model: LlamaModel) -> None:
    with pytest.raises(ConfigError, match="kv_type"):
        LlamaCppRunner(model, 16, kv_type="q7")
