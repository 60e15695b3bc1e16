"""What vLLM's KVCacheManager costs a request: run by block_manager.py with the interpreter of a vLLM installation.

    stdin    {NAME: [{"prompt": [...], "output": [...]}, ...], ...}
    stdout   {"version": V, "microseconds": {NAME: [...], ...}}

Only its scheduler's bookkeeping, called as `vllm.v1.core.sched.scheduler` calls it: no GPU, no engine, no weights.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from time import perf_counter
from typing import Any

BLOCK_SIZE = 16
NUM_BLOCKS = 8192


def main() -> None:
    """Answer what stdin asks."""
    given = json.load(sys.stdin)
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_manager import KVCacheManager
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.request import Request

    init_none_hash(sha256)
    layer = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=64, dtype=torch.float16)
    config = KVCacheConfig(
        num_blocks=NUM_BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], layer)]
    )
    hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
    sampling = SamplingParams(max_tokens=4096)
    spent = {}
    for name, requests in given.items():
        manager = KVCacheManager(config, 4096, scheduler_block_size=BLOCK_SIZE, hash_block_size=BLOCK_SIZE)
        spent[name] = [_request(manager, Request, hasher, sampling, number, one) for number, one in enumerate(requests)]
    json.dump({"version": version("vllm"), "microseconds": spent}, sys.stdout)


def _request(manager: Any, kind: Any, hasher: Any, sampling: Any, number: int, given: dict[str, list[int]]) -> float:
    begin = perf_counter()
    request = kind(str(number), given["prompt"], sampling, None, block_hasher=hasher)
    manager.new_step_starts()
    hits, cached, *_ = manager.get_computed_blocks(request)
    fresh = len(given["prompt"]) - cached
    if manager.allocate_slots(request, fresh, cached, hits) is None:
        raise RuntimeError("there are blocks for it")
    request.num_computed_tokens = len(given["prompt"])
    for token in given["output"]:
        request.append_output_token_ids(token)
        manager.new_step_starts()
        if manager.allocate_slots(request, 1) is None:
            raise RuntimeError("there are blocks for it")
        request.num_computed_tokens += 1
    manager.free(request)
    return 1e6 * (perf_counter() - begin)


if __name__ == "__main__":
    main()
