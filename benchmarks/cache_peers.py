"""What benchmarks/cache.py asks of other caches, in an environment of their own: requests on stdin, figures on stdout.

    uv venv /tmp/peers
    uv pip install --python /tmp/peers/bin/python litellm gptcache faiss-cpu sqlalchemy \\
        attrs orjson xxhash cachetools cattrs numpy onnxruntime tokenizers
    python benchmarks/cache.py --peers /tmp/peers/bin/python

LiteLLM: its cache in memory, which is exact. GPTCache: faiss and SQLite, its default threshold, our MiniLM (`velollm
embed install`; without it, GPTCache is left out). redisvl, and LiteLLM's semantic cache on Redis, search inside a
server with RediSearch and decide by a distance alone: for that, see the thresholds in benchmarks/cache.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from time import thread_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # this checkout, for its embedder

JSON = dict[str, Any]
Lookup = Callable[[str], Any]


def timed(lookup: Lookup, prompts: list[str]) -> JSON:
    """CPU microseconds of each lookup, and how many found something."""
    times, hits = [], 0
    for prompt in prompts:
        begin = thread_time()
        found = lookup(prompt)
        times.append((thread_time() - begin) * 1e6)
        hits += found is not None
    times.sort()
    return {
        "p50": round(times[len(times) // 2], 1),
        "p99": round(times[int(len(times) * 0.99)], 1),
        "lookups": len(times),
        "hits": hits,
    }


def litellm_cache(entries: list[str], cases: dict[str, list[str]]) -> JSON:
    """LiteLLM's own `Cache`, as its proxy uses it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import litellm
    from litellm.caching.caching import Cache

    cache = Cache(type="local")
    cache.cache.max_size_in_memory = 2 * len(entries)  # it keeps 200 by default

    def request(prompt: str) -> JSON:
        return {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0}

    for prompt in entries:
        answer = litellm.ModelResponse(choices=[{"message": {"role": "assistant", "content": "An answer. " * 20}}])
        cache.add_cache(answer.model_dump_json(), **request(prompt))
    lookups = {name: timed(lambda prompt: cache.get_cache(**request(prompt)), cases[name]) for name in cases}
    return {"version": version("litellm"), "entries": len(entries), **lookups}


@contextmanager
def gptcache(embed: Callable[[str], Any]) -> Iterator[tuple[Callable[[str], None], Lookup]]:
    """An empty GPTCache: how to put a prompt into it, and how to look one up."""
    import numpy as np
    from gptcache import Cache, Config
    from gptcache.adapter.api import get, put
    from gptcache.manager import CacheBase, VectorBase, get_data_manager
    from gptcache.processor.pre import get_prompt
    from gptcache.similarity_evaluation.distance import SearchDistanceEvaluation

    with tempfile.TemporaryDirectory() as folder:
        cache = Cache()
        cache.init(
            pre_embedding_func=get_prompt,
            embedding_func=lambda text, **_: np.array(embed(text), "float32"),
            data_manager=get_data_manager(
                CacheBase("sqlite", sql_url=f"sqlite:///{folder}/cache.db"),
                VectorBase("faiss", dimension=384, index_path=f"{folder}/faiss.index"),
            ),
            similarity_evaluation=SearchDistanceEvaluation(),
            config=Config(),
        )
        yield (
            lambda prompt: put(prompt, "An answer. " * 20, cache_obj=cache),
            lambda prompt: get(prompt, cache_obj=cache),
        )


def gptcache_times(embed: Callable[[str], Any], entries: list[str], cases: dict[str, list[str]]) -> JSON:
    """GPTCache's lookups among `entries`."""
    with gptcache(embed) as (put, get):
        for prompt in entries:
            put(prompt)
        lookups = {name: timed(get, cases[name]) for name in cases}
    return {"version": version("gptcache"), "entries": len(entries), **lookups}


def gptcache_answers(embed: Callable[[str], Any], pairs: list[list[str]]) -> list[bool]:
    """Whether it answers the second question of each pair from the first."""
    answers = []
    for stored, asked in pairs:
        with gptcache(embed) as (put, get):
            put(stored)
            answers.append(get(asked) is not None)
    return answers


def main() -> None:
    asked = json.load(sys.stdin)
    out, sys.stdout = sys.stdout, sys.stderr  # they print what they please
    os.environ.setdefault("GPTCACHE_LOG_LEVEL", "error")
    found: JSON = {"LiteLLM": litellm_cache(asked["entries"], asked["cases"])}
    from velollm.cache.embedder import open_embedder

    embed = open_embedder("auto")
    if embed is not None:
        few = {name: prompts[: asked["few"]] for name, prompts in asked["cases"].items()}
        found["GPTCache"] = gptcache_times(embed, asked["entries"][: asked["few"]], few)
        found["GPTCache"]["answers"] = gptcache_answers(embed, asked["pairs"])
    json.dump(found, out)
    out.flush()
    os._exit(0)  # at its exit, GPTCache writes indexes into folders that are gone


if __name__ == "__main__":
    main()
