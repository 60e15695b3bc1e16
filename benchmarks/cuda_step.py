"""A decoding step of an 8B model on a GPU, beside what it takes to read its weights and its cache once.

    python benchmarks/cuda_step.py [--batch 1 --batch 64] [--context 2048] [--save]

The weights are random, in the shape of Llama 3.1 8B and in fp16. A step is what the engine does for one: the inputs are
put in their places, the graph is launched, the best tokens are chosen and come back to the host. Its time is the median
of many on the host's clock; `roofline` is all that must be read over the rate of cuMemcpyDtoD, `over_roofline` the step
over that. `launched` is the same step without a graph. Results go to benchmarks/results/cuda_step.json with --save.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import attrs
import numpy as np
from harness import publish
from kernels import copy_rate, the_gpu

from velollm.engine.blocks import BLOCK_SIZE, BlockManager
from velollm.engine.cuda_batch import inputs_of
from velollm.engine.cuda_forward import Forward
from velollm.engine.cuda_graphs import DecodeGraphs
from velollm.engine.cuda_model import CudaModel, Layer
from velollm.engine.model_shape import ModelShape
from velollm.engine.scheduler import Chunk
from velollm.engine.sequence import Sequence
from velollm.gpu.arrays import Array
from velollm.gpu.executor import Executor
from velollm.gpu.rope import RopeScaling, rotations
from velollm.gpu.sampling import argmax

SCALAR, SIZE = "fp16", 2
GOALS = {1: 1.15, 64: 1.20}
STEPS = 50


@attrs.frozen(kw_only=True)
class Sizes:
    """What an architecture leaves open."""

    layers: int = 32
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    feed_forward: int = 14_336
    vocabulary: int = 128_256


def random_model(on: Executor, sizes: Sizes, context: int) -> CudaModel:
    """A model of these sizes, whose weights are random and small."""
    some = (np.random.default_rng(0).standard_normal(1 << 20) * 0.02).astype(np.float16)

    def noise(*shape: int) -> Array:
        return on.array(np.resize(some, shape))

    def ones() -> Array:
        return on.array(np.ones(sizes.width, np.float16))

    attended = sizes.heads * sizes.head_dim
    shape = ModelShape(
        layers=sizes.layers,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        rotary=sizes.head_dim,
        context=context,
        epsilon=1e-5,
        rope_base=500_000.0,
        scaling=RopeScaling(),
        halves=True,
    )
    layers = [
        Layer(
            attention_norm=ones(),
            qkv=noise(attended + 2 * sizes.kv_heads * sizes.head_dim, sizes.width),
            bias=None,
            q_norm=None,
            k_norm=None,
            output=noise(sizes.width, attended),
            feed_forward_norm=ones(),
            gate_up=noise(2 * sizes.feed_forward, sizes.width),
            down=noise(sizes.width, sizes.feed_forward),
        )
        for _ in range(sizes.layers)
    ]
    return CudaModel(
        shape=shape,
        embedding=noise(sizes.vocabulary, sizes.width),
        layers=tuple(layers),
        output_norm=ones(),
        output=noise(sizes.vocabulary, sizes.width),
        rotations=on.array(rotations(context, sizes.head_dim, base=500_000.0)),
    )


def bytes_read(model: CudaModel, tokens: int) -> int:
    """What a step must read: every weight but for the embeddings, and keys and values of all `tokens`."""
    layers = sum(one.nbytes for layer in model.layers for one in (layer.qkv, layer.output, layer.gate_up, layer.down))
    shape = model.shape
    return layers + model.output.nbytes + tokens * 2 * shape.layers * shape.kv_heads * shape.head_dim * SIZE


def decoding(batch: int, context: int) -> list[Chunk]:
    """The last token of `batch` sequences of `context` tokens each."""
    manager, chunks = BlockManager(batch * -(-context // BLOCK_SIZE)), []
    for number in range(batch):
        sequence = Sequence(number, [number % 1000] * context)
        sequence.table = manager.open()
        assert sequence.table is not None
        assert manager.grow(sequence.table, 0, context)
        chunks.append(Chunk(sequence, context - 1, 1))
    return chunks


def median(step: Callable[[], Any], steps: int) -> float:
    """Seconds of a step."""
    times = []
    for number in range(steps + 3):
        begun = perf_counter()
        step()
        if number >= 3:
            times.append(perf_counter() - begun)
    return statistics.median(times)


def measured(
    on: Executor, model: CudaModel, batch: int, context: int, rate: float, steps: int = STEPS
) -> dict[str, Any]:
    """A step for `batch` sequences, where `rate` bytes can be read and written in a second."""
    shape, blocks = model.shape, batch * -(-context // BLOCK_SIZE)
    pages = on.empty((2 * shape.layers, blocks, shape.kv_heads, BLOCK_SIZE, shape.head_dim), SCALAR)
    forward = Forward(model=model, pages=pages)
    graphs = DecodeGraphs(on, forward, rows=batch, blocks=-(-context // BLOCK_SIZE))
    chunks, group = decoding(batch, context), shape.heads // shape.kv_heads

    def replayed() -> None:
        logits = graphs.logits(chunks)
        assert logits is not None, "the driver captures nothing"
        on.host(argmax(logits, on=on))

    def launched() -> None:
        on.host(argmax(forward.logits(on, inputs_of(chunks, group, on)), on=on))

    found = {"step_ms": median(replayed, steps) * 1e3, "launched_ms": median(launched, max(1, steps // 5)) * 1e3}
    roofline = bytes_read(model, batch * context) / rate * 1e3
    found |= {"roofline_ms": roofline, "over_roofline": found["step_ms"] / roofline}
    return {"batch": batch, "context": context, **found, "goal": GOALS.get(batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, action="append", help="sequences at once (default: 1 and 64)")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    on, about = the_gpu()
    rate = copy_rate(on)
    model = random_model(on, Sizes(), args.context)
    rows = [measured(on, model, batch, args.context, rate) for batch in args.batch or sorted(GOALS)]
    result = {**about, "copy_bytes_per_second": rate, "rows": rows}
    publish(result, "cuda_step", save=args.save)


if __name__ == "__main__":
    main()
