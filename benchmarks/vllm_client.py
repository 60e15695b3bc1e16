"""`vllm bench serve` as a client alone: its own code for asking and for figures, without torch and the rest of vLLM.

    pip install --no-deps vllm && pip install aiohttp numpy regex tqdm          (in a virtual environment of its own)
    python vllm_client.py < asked.json

Reads `{"url", "model", "prompts", "output_len", "max_concurrency", "request_rate"}`, prints vLLM's result as JSON. What
the client imports for its datasets, tokenizers and command line stands in for here; nothing else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass
class SampleRequest:
    """vLLM's value of that name, as far as the client reads it."""

    prompt: str
    prompt_len: int
    expected_output_len: int
    multi_modal_data: Any = None
    request_id: str | None = None
    chat_messages: Any = None
    request_overrides: Any = None
    lora_request: Any = None
    timestamp: float | None = None


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    made.__path__ = []
    sys.modules[name] = made
    return made


def load(package: Path) -> Any:
    """vllm/benchmarks/serve.py, with its own request functions and stand-ins for what it does not need here."""
    nothing = lambda *given, **more: None  # noqa: E731
    module("vllm")
    module("vllm.benchmarks").__path__ = [str(package / "benchmarks")]
    module("vllm.benchmarks.lib").__path__ = [str(package / "benchmarks" / "lib")]
    module("vllm.benchmarks.datasets", SampleRequest=SampleRequest, add_dataset_parser=nothing, get_samples=nothing)
    module("vllm.tokenizers", TokenizerLike=object, get_tokenizer=nothing)
    module("vllm.utils")
    module("vllm.utils.argparse_utils", FlexibleArgumentParser=object)
    module("vllm.utils.gc_utils", freeze_gc_heap=nothing)
    module("vllm.utils.network_utils", join_host_port=lambda host, port: f"{host}:{port}")
    module("vllm.logger", init_logger=__import__("logging").getLogger)
    module(
        "vllm.benchmarks.lib.utils",
        convert_to_pytorch_benchmark_format=nothing, redact_sensitive_namespace=nothing, write_to_json=nothing,
    )  # fmt: skip
    return importlib.import_module("vllm.benchmarks.serve")


def main() -> None:
    asked = json.load(sys.stdin)
    found = importlib.util.find_spec("vllm")
    assert found is not None, "vllm is not installed here"
    assert found.origin is not None
    serve = load(Path(found.origin).parent)
    length = asked["output_len"]
    requests = [SampleRequest(prompt=text, prompt_len=1, expected_output_len=length) for text in asked["prompts"]]
    with contextlib.redirect_stdout(sys.stderr):
        result = asyncio.run(
            serve.benchmark(
                task_type=serve.TaskType.GENERATION, endpoint_type="openai-chat",
                api_url=f"{asked['url']}/v1/chat/completions", base_url=asked["url"], model_id=asked["model"],
                model_name=asked["model"], tokenizer=lambda *given, **more: None, input_requests=requests,
                logprobs=None, request_rate=asked["request_rate"] or float("inf"), burstiness=1.0, disable_tqdm=True,
                num_warmups=0, profile=False, selected_percentile_metrics=["ttft", "tpot", "itl", "e2el"],
                selected_percentiles=[50.0, 90.0, 99.0], ignore_eos=False, goodput_config_dict={},
                max_concurrency=asked["max_concurrency"], lora_modules=None, extra_headers=None,
                extra_body={"temperature": 0.0, "max_tokens": length},
            )
        )  # fmt: skip
    scalars = {key: value for key, value in result.items() if isinstance(value, (int, float))}
    print(json.dumps(scalars))


if __name__ == "__main__":
    main()
