"""The CUDA runner, its kernels emulated: the logits of NumpyRunner and of llama.cpp, and the same greedy tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulator.executor import Emulator, compiler
from support.draws import drawn, kept
from support.endless import NoEnd
from tiny_gguf import write_tiny_gguf

from velollm.engine import BlockManager, CudaRunner, EngineCore, JobSpec, NumpyRunner, SamplingParams, Sequence
from velollm.engine.events import Copy, Discard, Export, Import
from velollm.engine.model_shape import shape_of_config
from velollm.engine.runner import Runner
from velollm.engine.safetensors import PARTS, WHOLE
from velollm.engine.sampling import Draw
from velollm.engine.scheduler import Chunk
from velollm.engine.weights import read_weights
from velollm.errors import ConfigError
from velollm.gpu.arrays import rounded, widened
from velollm.gpu.rope import rotations
from velollm.models import DEFAULT_MODEL, find

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler (g++) to emulate kernels with")
needs_llama = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="the extra llamacpp is not installed")

WIDE = {"attention.head_count": 2, "attention.head_count_kv": 1, "rope.dimension_count": 64}  # heads of 64


def metadata(architecture: str = "llama") -> dict[str, Any]:
    return {f"{architecture}.{key}": value for key, value in WIDE.items()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("wide") / "wide.gguf", metadata=metadata())


def chunks(runs: list[tuple[int, int]], seed: int = 0, blocks: int = 32) -> Iterator[Chunk]:
    """Sequences of random tokens in blocks of their own: (computed already, to be computed now)."""
    manager = BlockManager(blocks)
    random = np.random.default_rng(seed)
    for number, (start, count) in enumerate(runs):
        sequence = Sequence(number, random.integers(0, 500, start + count).tolist())
        sequence.table = manager.open()
        assert sequence.table is not None
        assert manager.grow(sequence.table, 0, start + count)
        yield Chunk(sequence, start, count)


def computed(runner: Runner, runs: list[tuple[int, int]]) -> list[np.ndarray[Any, Any]]:
    """The logits of the last steps, after what came before was computed in steps of its own."""
    wanted = list(chunks(runs))
    before = [Chunk(chunk.sequence, 0, chunk.start) for chunk in wanted if chunk.start]
    if before:
        runner.execute(before)
    return [runner.execute(wanted).copy()]


RUNS = [(0, 37), (16, 1), (20, 3), (31, 2), (5, 40)]


def test_logits_are_those_of_the_reference(tiny: Path) -> None:
    expected = computed(NumpyRunner(tiny, 32), RUNS)[0]
    for scalar, tolerance in (("fp32", 2e-5), ("fp16", 2e-2), ("bf16", 1e-1)):
        on = Emulator(seed=2)
        got = computed(CudaRunner(tiny, 32, scalar=scalar, on=on), RUNS)[0]
        assert got.shape == expected.shape == (5, 512)
        assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()
        kinds = {name.rpartition("_d64")[0] for name in on.launched if name.startswith("paged")}
        wanted = (
            {"paged_attention_simt_fp32"} if scalar == "fp32" else {f"paged_decode_{scalar}", f"paged_prefill_{scalar}"}
        )
        assert kinds == wanted


MODES: dict[str, dict[str, Any]] = {
    "batched": {},
    "in pieces": {"token_budget": 9},
    "swapped": {"num_blocks": 8, "swap_tokens": 10_000, "recompute": 0},
    "forked": {"n": 3},
}


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=() if mode == "swapped" else pytest.mark.e2e) for mode in MODES]
)
def test_greedy_tokens_are_those_of_the_reference(tiny: Path, mode: str) -> None:
    options = dict(MODES[mode])
    num_blocks, n = options.pop("num_blocks", 32), options.pop("n", 1)
    random = np.random.default_rng(7)
    prefix = random.integers(0, 500, 20).tolist()
    prompts = [prefix + random.integers(0, 500, 12).tolist() for _ in range(3)]
    answers = []
    for runner in (NumpyRunner(tiny, num_blocks), CudaRunner(tiny, num_blocks, scalar="fp32", on=Emulator())):
        core = EngineCore(runner, NoEnd(), **options)
        jobs = [
            core.add(JobSpec(prompt=one, sampling=SamplingParams(temperature=0), max_tokens=20, n=n)) for one in prompts
        ]
        said: dict[Any, list[int]] = {}
        while not core.idle:
            for job, update in core.step():
                assert not isinstance(update, BaseException), update
                said.setdefault((jobs.index(job), update.index), []).extend(update.tokens)
        answers.append(said)
        assert bool(core.scheduler.counters.swapped) == (mode == "swapped")
        runner.close()
    assert answers[0] == answers[1]
    assert all(len(tokens) == 20 and len(set(tokens)) > 3 for tokens in answers[0].values())


def test_blocks_are_copied_carried_away_and_brought_back(tiny: Path) -> None:
    """What is swapped moves as late as it may: whoever uses the blocks must have waited for it."""
    on = Emulator()
    runner = CudaRunner(tiny, 8, scalar="fp32", on=on)
    pages = runner._pages.view()
    pages[...] = np.random.default_rng(0).standard_normal(pages.shape)
    before = pages.copy()
    runner.apply([Copy(1, 5, 3), Export(7, 0, (5, 2), 20)])
    (chunk,) = chunks([(0, 3)])
    assert chunk.table == [0]
    runner.execute([chunk])
    assert np.array_equal(pages[:, [5, 2]], before[:, [1, 2]])
    assert np.isnan(runner._moves._kept[7].view()).all(), "a step that uses other blocks does not wait"
    runner.execute([chunk])
    assert np.array_equal(runner._moves._kept[7].view(), before[:, [1, 2]]), "but the one after it does"
    pages[:, [5, 2]] = np.nan
    runner.apply([Import(7, 0, (0, 6)), Export(8, 0, (3,), 16), Discard(8)])
    assert len(runner._moves._leaving) == 2
    runner.execute([chunk])
    assert np.array_equal(pages[:, 6], before[:, 2]), "it uses block 0, which was on its way"
    assert runner._moves._leaving == []
    assert runner._moves._kept == {}
    runner.apply([Export(10, 0, (7,), 16), Discard(10)])
    runner.execute([chunk])
    assert len(runner._moves._leaving) == 1, "memory that may still be written to stays"
    runner.execute([chunk])
    assert runner._moves._leaving == []
    runner.apply([Export(9, 0, (6,), 16), Copy(4, 6, 16)])
    assert np.array_equal(runner._moves._kept[9].view()[:, 0], before[:, 2]), "a copy waits as well"
    assert len(runner._moves._host._pieces) == 2, "for two blocks, and for one: pinned memory is used again"
    on.launched.clear()
    runner.close()
    runner.close()
    assert sum(memory.size for memory in on._alive) < 40 << 20, "nothing is left but the workspace of products"


def test_steps_that_decode_are_captured_once_for_each_size(tiny: Path) -> None:
    """One to five sequences, in rows for 1, 2, 4 and 8: tokens and cache as without graphs, nothing beside them."""
    found = []
    for graph_rows in (0, 8):
        on = Emulator(seed=graph_rows)
        runner = CudaRunner(tiny, 48, scalar="fp16", graph_rows=graph_rows, on=on)
        runner._pages.view()[...] = 7
        wanted = list(chunks([(start, 1) for start in (17, 31, 5, 40, 100)], blocks=48))
        runner.execute([Chunk(chunk.sequence, 0, chunk.start) for chunk in wanted])
        logits, launched = [], []
        for count in (5, 3, 1, 2, 5, 3, 4, 1):
            on.launched.clear()
            logits.append(runner.execute(wanted[:count]).copy())
            launched.append(tuple(on.launched))
        found.append((logits, runner._pages.view().copy()))
        assert runner.graphs.replays == (4 if graph_rows else 0), "the second of each size of 8, 4, 1 and 4 rows"
        if graph_rows:
            assert launched[4] == launched[0], "what was captured, and no more"
    for plain, replayed in zip(found[0][0], found[1][0], strict=True):
        assert plain.shape == replayed.shape
        assert np.abs(plain - replayed).max() < 2e-2 * np.abs(plain).max(), "contexts are split otherwise"
    assert np.array_equal(found[0][1] == 7, found[1][1] == 7), "rows without a sequence write nothing"


def test_what_decodes_beside_prompts_or_in_crowds_is_not_captured(tiny: Path) -> None:
    runner = CudaRunner(tiny, 48, scalar="fp16", graph_rows=2, on=Emulator())
    first, second, third = chunks([(0, 1), (0, 1), (0, 1)])
    longer = Chunk(first.sequence, 0, 1)
    longer.sequence.tokens.append(3)
    longer = Chunk(longer.sequence, 0, 1)
    assert not longer.sample
    assert [runner.graphs.take(some) for some in ([second], [second, third], [first, second, third], [longer])] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_driver_that_captures_nothing_is_done_without(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: Emulator, work: Any) -> Any:
        raise RuntimeError("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    (chunk,) = chunks([(0, 1)])
    expected = CudaRunner(tiny, 8, scalar="fp32", graph_rows=0, on=Emulator()).execute([chunk])
    monkeypatch.setattr(Emulator, "capture", refuse)
    runner = CudaRunner(tiny, 8, scalar="fp32", on=Emulator())
    assert np.array_equal(runner.execute([chunk]), expected)
    assert np.array_equal(runner.execute([chunk]), expected)
    assert [record.message for record in caplog.records] == [
        "steps are not captured, and are slower for it: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"
    ]


def test_tokens_are_chosen_where_the_logits_lie(tiny: Path) -> None:
    """By the draws of velollm.gpu.sample, whatever else is in the batch; rows without a draw come back as logits."""
    runner = CudaRunner(tiny, 32, scalar="fp32", on=Emulator())
    runs = list(chunks([(0, 20), (0, 1), (0, 3)]))
    logits = runner.execute(runs).copy()
    hot = Draw(temperature=1.5, top_k=40, top_p=0.95, min_p=0.01, seed=2**63 + 9, position=20)
    greedy = Draw(temperature=0, top_k=0, top_p=1, min_p=0, seed=0, position=3)
    tokens, rows = runner.choose(runs, [hot, None, greedy])
    values = logits[0].astype(np.float64)
    assert tokens == [drawn(values, kept(values, 40, 0.95, 0.01), 1.5, 2**63 + 9, 20), None, int(logits[2].argmax())]
    assert [row is None for row in rows] == [True, False, True]
    assert np.array_equal(rows[1], logits[1])
    assert runner.choose(runs[2:], [greedy])[0] == tokens[2:]
    assert runner.choose(runs[:1], [None])[0] == [None]
    runner._forward.model.output_norm.view()[...] = np.nan
    tokens, rows = runner.choose(runs, [hot, greedy, None])
    assert tokens == [None] * 3
    assert all(row is not None and np.isnan(row).all() for row in rows)
    unfinished = Chunk(runs[0].sequence, 0, 5)
    assert runner.choose([unfinished], []) == ([], [])


@needs_llama
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_logits_are_those_of_llama_cpp(tmp_path: Path, architecture: str) -> None:
    """Qwen2 has biases, Qwen3 norms of heads, and both turn halves: the same file says the same in llama.cpp."""
    from velollm.engine import LlamaCppRunner

    random = np.random.default_rng(3)
    tensors: dict[str, Any] = {}
    for layer in range(2):
        block = f"blk.{layer}.attn_"
        if architecture == "qwen2":
            sizes = (("q", 128), ("k", 64), ("v", 64))
            tensors |= {f"{block}{name}.bias": random.standard_normal(size).astype(np.float32) for name, size in sizes}
        if architecture == "qwen3":
            tensors |= {f"{block}{name}_norm.weight": random.uniform(0.5, 2, 64).astype(np.float32) for name in "qk"}
    more = {"qwen3.attention.key_length": 64, "qwen3.attention.value_length": 64} if architecture == "qwen3" else {}
    path = write_tiny_gguf(
        tmp_path / "model.gguf", architecture=architecture, tensors=tensors, metadata={**metadata(architecture), **more}
    )
    runs = [(0, 30), (0, 2)]
    llama = LlamaCppRunner(path, 32, threads=1, kv_type="f32")
    expected = computed(llama, runs)[0]
    got = computed(CudaRunner(path, 32, scalar="fp32", on=Emulator()), runs)[0]
    llama.close()
    assert np.abs(got - expected).max() < 2e-3 * np.abs(expected).max()


CONFIG = {
    "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def as_safetensors(gguf: Path, folder: Path, config: dict[str, Any]) -> Path:
    """The same model as transformers would write it, in bfloat16 and two files: halves of a head turn."""
    names = {one: other for other, one in WHOLE.items()}
    tensors: dict[str, tuple[str, Any]] = {}
    for name, values in read_weights(gguf).items():
        if match := re.fullmatch(r"blk\.(\d)\.(attn_[qk])\.weight", name):
            heads = {"attn_q": 2, "attn_k": 1}[match[2]]
            values = values.reshape(heads, 32, 2, 128).swapaxes(1, 2).reshape(-1, 128)
        if match := re.fullmatch(r"blk\.(\d)\.(\w+)\.weight", name):
            (part,) = (one for one, other in PARTS.items() if other == match[2])
            name = f"model.layers.{match[1]}.{part}.weight"
        tensors[names.get(name, name)] = ("BF16", rounded(values, "bf16"))
    for number in range(2):
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name, (kind, values) in list(tensors.items())[number::2]:
            end = len(data) + values.nbytes
            header[name] = {"dtype": kind, "shape": list(values.shape), "data_offsets": [len(data), end]}
            data += values.tobytes()
        text = json.dumps(header).encode()
        (folder / f"model-0000{number}.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_safetensors_say_what_the_gguf_says(tiny: Path, tmp_path: Path) -> None:
    path = as_safetensors(tiny, tmp_path, CONFIG)
    reference = NumpyRunner(tiny, 32)
    reference._weights = {name: widened(rounded(values, "bf16"), "bf16") for name, values in reference._weights.items()}
    runs = [(0, 30), (16, 2)]
    expected = computed(reference, runs)[0]
    got = computed(CudaRunner(path, 32, scalar="fp32", on=Emulator()), runs)[0]
    assert np.abs(got - expected).max() < 2e-5 * np.abs(expected).max()
    as_they_are = CudaRunner(path, 32, scalar="bf16", on=Emulator())._forward.model.layers[1].down
    bits = rounded(reference._weights["blk.1.ffn_down.weight"], "bf16")
    assert np.array_equal(as_they_are.view(), bits)


def test_what_a_config_says_of_rope(tmp_path: Path) -> None:
    """An attention factor takes the place of the amplitude that follows from the factor; a part of a head may turn."""

    def amplitude(**rope: Any) -> float:
        shape = shape_of_config({**CONFIG, "rope_parameters": {"factor": 4.0, **rope}}, tmp_path, 4096)
        return float(np.hypot(*rotations(2, shape.rotary, scaling=shape.scaling)[1, 0]))

    assert amplitude(rope_type="yarn") == pytest.approx(1 + 0.1 * np.log(4))
    assert amplitude(rope_type="yarn", attention_factor=0.7) == pytest.approx(0.7)
    long = {"rope_type": "longrope", "long_factor": [1.0] * 32, "short_factor": [1.0] * 32}
    assert amplitude(**long, attention_factor=1.3) == pytest.approx(1.3)
    assert shape_of_config({**CONFIG, "partial_rotary_factor": 0.5}, tmp_path, 4096).rotary == 32


def test_weights_are_read_when_they_are_wanted(tiny: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.read_bytes())
    weights = read_weights(copy)
    assert "output_norm.weight" in weights
    first = weights["output_norm.weight"]
    assert first is not weights["output_norm.weight"]
    copy.unlink()
    with pytest.raises(FileNotFoundError):
        weights["output_norm.weight"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma3"}, "not 'gemma3'"),
        ({"num_attention_heads": None}, "does not say what is needed"),
        ({"num_key_value_heads": 2}, "its heads take 128 rows of attn_k, and it has 64"),
        ({"num_hidden_layers": 3}, "has no blk.2"),
        ({"num_hidden_layers": -1}, "at least one layer"),
        ({"rope_scaling": {"rope_type": "sideways"}}, "scaling 'sideways'"),
        ({"hidden_act": "relu2"}, "'relu2' is computed in no runner"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    tiny: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = as_safetensors(tiny, tmp_path, {**CONFIG, **changes})
    with pytest.raises(ConfigError, match=words):
        CudaRunner(path, on=Emulator())


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"{", "cannot be read"),
        (b"[]", "no object"),
        (b'{"model.norm.weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}', "does not lie within"),
        (b'{"model.norm.weight": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 0]}}', "does not lie within"),
        (b'{"model.norm.weight": {"dtype": "F32", "shape": 4}}', "not described as it should be"),
        (
            b'{"model.norm.weight": {"dtype": "I4", "shape": [0], "data_offsets": [0, 0]}}',
            "only F32, F16, BF16 are read",
        ),
        (b'{"model.vision.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}', "no model that is known"),
    ],
)
def test_broken_safetensors_are_refused(tmp_path: Path, header: bytes, words: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match=words):
        CudaRunner(path, on=Emulator())
    path.write_bytes((10**9).to_bytes(8, "little") + header)
    with pytest.raises(ConfigError, match="broken off"):
        CudaRunner(path, on=Emulator())


def test_what_the_kernels_cannot_compute_is_refused(tmp_path: Path) -> None:
    narrow = write_tiny_gguf(tmp_path / "narrow.gguf")
    with pytest.raises(ConfigError, match="heads of 32 over 2 are not supported"):
        CudaRunner(narrow, on=Emulator())
    other = write_tiny_gguf(tmp_path / "other.gguf", architecture="gemma3", metadata=metadata("gemma3"))
    with pytest.raises(ConfigError, match="not 'gemma3'"):
        CudaRunner(other, on=Emulator())
    with pytest.raises(ConfigError, match="'fp64' is none of"):
        CudaRunner(narrow, scalar="fp64", on=Emulator())
    stretched = write_tiny_gguf(
        tmp_path / "stretched.gguf", metadata={**metadata(), "llama.rope.scaling.type": "sideways"}
    )
    with pytest.raises(ConfigError, match="scaling 'sideways'"):
        CudaRunner(stretched, on=Emulator())


def answers(runner: Runner, specs: list[JobSpec]) -> list[dict[int, list[int]]]:
    """The tokens of each choice of each job, all of them run together."""
    core = EngineCore(runner, NoEnd())
    jobs = [core.add(spec) for spec in specs]
    said: list[dict[int, list[int]]] = [{} for _ in specs]
    while not core.idle:
        for job, update in core.step():
            assert not isinstance(update, BaseException), update
            said[jobs.index(job)].setdefault(update.index, []).extend(update.tokens)
    runner.close()
    return said


def test_all_ways_to_choose_in_one_batch(tiny: Path) -> None:
    """What the GPU chooses, and what the host must, because it takes more than logits: neither disturbs the other."""
    prompt = np.random.default_rng(5).integers(0, 500, 9).tolist()
    seeded = SamplingParams(temperature=1.0, top_k=20, seed=11)
    ways = {
        "greedy": SamplingParams(temperature=0),
        "reported": SamplingParams(temperature=0, logprobs=2),
        "penalised": SamplingParams(temperature=0, frequency_penalty=1.5),
        "typical": SamplingParams(temperature=0.7, typical_p=0.5, seed=3),
        "seeded": seeded,
        "at random": SamplingParams(),
    }
    specs = [JobSpec(prompt=prompt, sampling=one, max_tokens=6) for one in ways.values()]
    specs.append(JobSpec(prompt=prompt, sampling=seeded, max_tokens=6, n=3))
    together = answers(CudaRunner(tiny, 32, scalar="fp32", on=Emulator()), specs)
    expected = answers(NumpyRunner(tiny, 32), specs)
    for place, way in enumerate(ways):
        if way not in ("seeded", "at random"):  # those draw by Philox here
            assert together[place] == expected[place], way
    alone = answers(CudaRunner(tiny, 32, scalar="fp32", graph_rows=0, on=Emulator()), [specs[4]])
    assert alone[0] == together[4], "the same seed, the same answer, whoever else asks"
    several = together[-1]
    assert len(several) == 3
    assert len({tuple(tokens) for tokens in several.values()}) > 1
    again = answers(CudaRunner(tiny, 32, scalar="fp32", on=Emulator()), [specs[-1]])
    assert again[0] == several


@pytest.mark.e2e
def test_the_default_model() -> None:
    """All thirty layers of it, its weights quantised in the file, in fp16; two texts at once."""
    path = find(DEFAULT_MODEL)
    if path is None:
        pytest.skip(f"{DEFAULT_MODEL} is not installed")
    greedy = SamplingParams(temperature=0)
    prompts = ([1, 504, 3575, 282], [1, 9690, 198, 2683, 359, 253, 5356])
    specs = [JobSpec(prompt=prompt, sampling=greedy, max_tokens=4) for prompt in prompts]
    runner = CudaRunner(path, 32, scalar="fp16", on=Emulator())
    graphs = runner.graphs
    assert answers(runner, specs) == answers(NumpyRunner(path, 32), specs)
    assert graphs.replays == 2


def test_a_gpu_that_fails_is_told_of(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The jobs of the step are lost, and whoever owns the process may end it."""
    told: list[str] = []
    runner = CudaRunner(tiny, 8, scalar="fp32", on=Emulator(), on_failure=lambda: told.append("failed"))
    core = EngineCore(runner, NoEnd())
    job = core.add(JobSpec(prompt=[1, 2, 3], max_tokens=4))

    def fails(self: Emulator, array: Any) -> Any:
        raise RuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    monkeypatch.setattr(Emulator, "host", fails)
    ((lost, error),) = core.step()
    assert lost is job
    assert "the GPU failed: CUDA_ERROR_ILLEGAL_ADDRESS" in str(error)
    assert told == ["failed"]
    assert "the GPU failed" in caplog.text
    assert job.error is error
