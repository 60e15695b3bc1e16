"""What a build of llama.cpp computes, and how fast: run in a process of its own, for a wrong build may end it.

stdin    {"sys_path": [...], "library": PATH, "model": PATH, "threads": N}
stdout   {"tokens": [[...], ...], "prefill": S, "decode": S}    seconds of CPU for each token
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from time import process_time
from typing import Any

from velollm.errors import ConfigError

__all__ = ["main", "try_library"]

START = "import json, sys; given = json.loads(sys.stdin.read()); sys.path[:] = given['sys_path']; "
CALL = "from velollm.engine.trial import main; main(given)"
SEQUENCES, PROMPT, OUTPUT = 16, 64, 12
LONGEST = 600.0


def try_library(library: Path, model: Path, threads: int) -> dict[str, Any]:
    """The result of a trial of `library`. Raises `ConfigError` when it fails."""
    given = {"sys_path": sys.path, "library": str(library), "model": str(model)}
    try:
        done = subprocess.run(  # noqa: S603 (our own words)
            [sys.executable, "-c", START + CALL],
            input=json.dumps({**given, "threads": threads}).encode(),
            capture_output=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{library} did not compute anything within {LONGEST:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise ConfigError(f"{library} does not work: {said[0]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(given: dict[str, Any]) -> None:
    """Answer prompts that are the same everywhere, greedily and all at once."""
    from velollm.engine.core import EngineCore, JobSpec
    from velollm.engine.llama_runner import LlamaCppRunner, LlamaModel
    from velollm.engine.sampling import SamplingParams

    model = LlamaModel(given["model"], library=given["library"], gpu_layers=0)
    runner = LlamaCppRunner(model, SEQUENCES * 8, threads=given["threads"], kv_type="f16")
    core = EngineCore(runner, model.vocabulary)
    most = min(model.vocabulary.size, 4096)
    jobs = [
        core.add(
            JobSpec(
                prompt=[(7 + 31 * number + 13 * at * at) % most for at in range(PROMPT)],
                max_tokens=OUTPUT,
                sampling=SamplingParams(temperature=0),
            )
        )
        for number in range(SEQUENCES)
    ]
    tokens: dict[Any, list[int]] = {job: [] for job in jobs}
    spent, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    while not core.idle:
        before, done = process_time(), core.scheduler.counters.prefilled + core.scheduler.counters.decoded
        for job, update in core.step():
            if isinstance(update, Exception):
                raise update
            tokens[job] += update.tokens
        count = core.scheduler.counters.prefilled + core.scheduler.counters.decoded - done
        prompt = count > SEQUENCES
        spent[prompt] += process_time() - before
        counts[prompt] += count
    runner.close()
    model.close()
    rates = {"prefill": spent[True] / max(counts[True], 1), "decode": spent[False] / max(counts[False], 1)}
    sys.stdout.write(json.dumps({"tokens": list(tokens.values()), **rates}))
