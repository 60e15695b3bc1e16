"""The kernels on a GPU, next to what the memory can do and next to FlashInfer and torch SDPA where they are installed.

    python benchmarks/kernels.py [--only decode] [--save]

copy       the rate of cuMemcpyDtoD of 1 GiB: what the shares below are shares of
read       the rate of a kernel that only reads 1 GiB: the ceiling of what decoding can reach
decode     bf16, 32 query heads over 8, heads of 128: bytes of keys and values over time; next to the faster of
           FlashInfer's two ways, and how much faster than that in the geometric mean
prefill    causal, no prefix: TFLOP/s, next to SDPA with the FLASH backend on contiguous K and V
kv         the writing of 8,192 tokens, copies of 1,024 blocks: bytes read and written over time

Each call is captured once for each of several sets of buffers, more than twice the L2 cache together, in one graph;
events time its replay; the figure is the median of many. Results go to benchmarks/results/kernels.json with --save.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from harness import publish

from velollm.gpu.arrays import Array
from velollm.gpu.attention import paged_attention
from velollm.gpu.device import look
from velollm.gpu.executor import CudaExecutor
from velollm.gpu.kv import copy_blocks, write_kv
from velollm.gpu.recording import Recorder
from velollm.gpu.rope import rotations

HEADS, KV_HEADS, HEAD_DIM, BLOCK = 32, 8, 128, 16
DECODES = {(64, 2048): 0.90, (8, 16_384): 0.90, (8, 4096): 0.72, (1, 32_768): 0.70, (256, 512): 0.80}  # goals: shares
WRITES = 0.85  # likewise
PREFILLS = ((1, 2048), (1, 8192), (4, 4096))
REPLAYS = 30
GIB = 1024**3

Call = Callable[[], Any]


def timed(on: CudaExecutor, calls: Sequence[Callable[[Recorder], Any]]) -> float:
    """Seconds of one of `calls`, each of which has buffers of its own: the median over replays of all of them."""
    recorder = Recorder(on)
    kept = [call(recorder) for call in calls]  # what they give stays apart, as what they read does
    return median(on, on.capture(recorder.work)) / len(kept)


def median(on: CudaExecutor, call: Call) -> float:
    """Seconds of `call`, by events."""
    from cuda.core import EventOptions

    options = EventOptions(timing_enabled=True)
    times = []
    for number in range(REPLAYS + 3):
        start = on.stream.record(options=options)
        call()
        end = on.stream.record(options=options)
        end.sync()
        if number >= 3:
            times.append((end - start) / 1e3)
    return statistics.median(times)


def copy_rate(on: CudaExecutor) -> float:
    """Bytes a second, read and written."""
    from cuda.bindings import driver

    source, target = (on.empty((GIB,), "uint8") for _ in range(2))
    handle = int(on.stream.handle)
    seconds = median(on, lambda: driver.cuMemcpyDtoDAsync(target.pointer, source.pointer, GIB, handle))
    return 2 * GIB / seconds


READ = """
extern "C" __global__ void read_only(const uint4* from, unsigned* to, unsigned long long count) {
  unsigned seen = 0;
  const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
#pragma unroll 8
  for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint4 four = from[i];
    seen ^= four.x ^ four.y ^ four.z ^ four.w;
  }
  if (seen == 0x9e3779b9u) *to = seen;  // so that nothing is optimised away
}
"""


def read_kernel(architecture: str) -> Any:
    """The code object of a kernel that reads, and writes as good as nothing."""
    from cuda.core import Program, ProgramOptions

    return Program(READ, "c++", ProgramOptions(std="c++17", arch=architecture)).compile("cubin")


def read_rate(on: CudaExecutor) -> float:
    """Bytes a second, read."""
    from cuda.core import LaunchConfig, launch

    source, target = on.empty((GIB,), "uint8"), on.empty((1,), "int32")
    kernel = read_kernel(f"sm_{on.capability}").get_kernel("read_only")
    config = LaunchConfig(grid=8 * on.processors, block=512)
    arguments = (source.pointer, target.pointer, np.uint64(GIB // 16))
    return GIB / median(on, lambda: launch(on.stream, config, kernel, *arguments))


def rotation(on: CudaExecutor, each: int) -> int:
    """So many sets of buffers of `each` bytes that no replay finds the last one in L2."""
    return max(2, -(-2 * on.device.properties.l2_cache_size // each))


def noise(on: CudaExecutor, *shape: int) -> Array:
    """Random bfloat16."""
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return on.array((values.view(np.uint32) >> 16).astype(np.uint16), "bf16")


def decode(on: CudaExecutor, batch: int, length: int, rate: float) -> dict[str, Any]:
    pages = length // BLOCK
    size = 2 * batch * length * KV_HEADS * HEAD_DIM * 2
    sets = [[noise(on, batch * pages, KV_HEADS, BLOCK, HEAD_DIM) for _ in range(2)] for _ in range(rotation(on, size))]
    q = noise(on, batch, HEADS, HEAD_DIM)
    order = np.random.default_rng(1).permutation(batch * pages).astype(np.int32)
    tables, lengths = on.array(order.reshape(batch, pages)), on.array(np.full(batch, length, np.int32))
    seconds = timed(on, [lambda rec, kv=kv: paged_attention(q, *kv, tables, lengths, on=rec) for kv in sets])
    row = {"what": f"decode {batch}x{length}", "us": seconds * 1e6, "share_of_copy": size / seconds / rate}
    row["goal"] = DECODES[batch, length]
    if find_spec("flashinfer"):
        row["flashinfer_us"] = 1e6 * min(flashinfer_decode(q, sets, tables, cores) for cores in (True, False))
    return row


def flashinfer_decode(q: Array, sets: list[list[Array]], tables: Array, tensor_cores: bool) -> float:
    """Its batch decode over the same pages."""
    import flashinfer
    import torch

    def tensor(array: Array) -> Any:
        made = torch.as_tensor(array, device="cuda")
        return made.view(torch.bfloat16) if array.scalar == "bf16" else made

    batch, pages = tables.shape
    workspace = torch.empty(128 * 1024 * 1024, dtype=torch.uint8, device="cuda")
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=tensor_cores)
    starts = torch.arange(batch + 1, dtype=torch.int32, device="cuda") * pages
    last = torch.full((batch,), BLOCK, dtype=torch.int32, device="cuda")
    wrapper.plan(
        starts, tensor(tables).reshape(-1), last, HEADS, KV_HEADS, HEAD_DIM, BLOCK,
        q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16,
    )  # fmt: skip
    queries, caches = tensor(q), [tuple(map(tensor, pair)) for pair in sets]
    return torch_median(lambda: [wrapper.run(queries, pair) for pair in caches]) / len(sets)


def torch_median(call: Call) -> float:
    """Seconds of `call`, captured in a graph of torch's."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def prefill(on: CudaExecutor, batch: int, length: int) -> dict[str, Any]:
    pages = length // BLOCK
    q = noise(on, batch * length, HEADS, HEAD_DIM)
    keys, values = (noise(on, batch * pages, KV_HEADS, BLOCK, HEAD_DIM) for _ in range(2))
    tables = on.array(np.arange(batch * pages, dtype=np.int32).reshape(batch, pages))
    lengths = on.array(np.full(batch, length, np.int32))
    starts = np.arange(batch + 1, dtype=np.int32) * length
    seconds = timed(on, [lambda rec: paged_attention(q, keys, values, tables, lengths, starts, on=rec)])
    work = 2 * 2 * batch * HEADS * HEAD_DIM * length * (length + 1) / 2
    row = {"what": f"prefill {batch}x{length}", "us": seconds * 1e6, "tflops": work / seconds / 1e12}
    if find_spec("torch"):
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        shape = (batch, HEADS, length, HEAD_DIM)
        tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attend = torch.nn.functional.scaled_dot_product_attention
            row["sdpa_flash_us"] = torch_median(lambda: attend(*tensors, is_causal=True)) * 1e6
        row["goal_us"] = row["sdpa_flash_us"]
    return row


def writes(on: CudaExecutor, rate: float) -> list[dict[str, Any]]:
    tokens, blocks = 8192, 1024
    table = on.array(rotations(tokens, HEAD_DIM))
    positions, slots = on.array(np.arange(tokens, dtype=np.int32)), on.array(np.arange(tokens, dtype=np.int64))
    size = tokens * HEAD_DIM * 2 * (2 * HEADS + 4 * KV_HEADS)
    sets = [
        [noise(on, tokens, HEADS + 2 * KV_HEADS, HEAD_DIM)]
        + [on.empty((tokens // BLOCK, KV_HEADS, BLOCK, HEAD_DIM), "bf16") for _ in range(2)]
        for _ in range(rotation(on, size))
    ]
    seconds = timed(on, [lambda rec, one=one: write_kv(*one, slots, positions, table, on=rec) for one in sets])
    rows = [
        {"what": f"write {tokens} tokens", "us": seconds * 1e6, "share_of_copy": size / seconds / rate, "goal": WRITES}
    ]
    cache = on.empty((2, 2 * blocks, KV_HEADS, BLOCK, HEAD_DIM), "bf16")
    pairs = on.array(np.stack([np.arange(blocks), np.arange(blocks, 2 * blocks)], axis=1).astype(np.int32))
    seconds = timed(on, [lambda rec: copy_blocks(cache, cache, pairs, on=rec)])
    rows.append(
        {
            "what": f"copy {blocks} blocks",
            "us": seconds * 1e6,
            "share_of_copy": cache.nbytes / seconds / rate,
            "goal": WRITES,
        }
    )
    return rows


def the_gpu() -> tuple[CudaExecutor, dict[str, Any]]:
    """The first GPU, and what the results say of it. Ends the script where there is none."""
    found = look()
    if found.missing:
        sys.stderr.write(f"there is no GPU to measure: {found.missing}; {found.summary}\n")
        raise SystemExit(3)
    return CudaExecutor(), {"gpu": found.devices[0], "found": found.summary}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("decode", "prefill", "kv"))
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    on, about = the_gpu()
    rate = copy_rate(on)
    rows: list[dict[str, Any]] = [
        {"what": "copy", "bytes_per_second": rate},
        {"what": "read", "bytes_per_second": read_rate(on)},
    ]
    if args.only in (None, "decode"):
        rows += [decode(on, batch, length, rate) for batch, length in DECODES]
        ratios = [row["flashinfer_us"] / row["us"] for row in rows if "flashinfer_us" in row]
        if ratios:
            rows.append({"what": "decode over flashinfer", "ratio": statistics.geometric_mean(ratios), "goal": 1.05})
    if args.only in (None, "prefill"):
        rows += [prefill(on, batch, length) for batch, length in PREFILLS]
    if args.only in (None, "kv"):
        rows += writes(on, rate)
    result = {**about, "rows": rows}
    publish(result, "kernels", save=args.save)


if __name__ == "__main__":
    main()
