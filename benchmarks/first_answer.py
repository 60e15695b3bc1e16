"""From a clone to the first answer, as a new user gets there: what the README says first, in an environment of its own.

    python benchmarks/first_answer.py

Clones this repository, makes an environment, installs VeloLLM with llama.cpp, serves, and asks; a model that this user
has already is not used. How long that takes is for the most part a matter of pip's downloads, or of its cache. Writes
results/first_answer.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
from harness import HERE, free_port, machine

QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}]}
PATIENCE = 600.0  # seconds


def first_answer(url: str, process: subprocess.Popen[bytes]) -> str:
    """What is answered once anything is."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            answer = httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=60)
            if answer.status_code == 200:
                return str(answer.json()["choices"][0]["message"]["content"])
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError("no answer came")


def main() -> None:
    with TemporaryDirectory() as folder:
        clone, environment, port = Path(folder) / "velollm", Path(folder) / "env", free_port()
        begin = time.perf_counter()
        subprocess.run(["git", "clone", "--quiet", str(HERE.parent), str(clone)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin" / "pip"), "install", "--quiet", f"{clone}[llamacpp]"], check=True)
        installed = time.perf_counter()
        command = [str(environment / "bin" / "velollm"), "-q", "serve", "--port", str(port)]
        own = {**os.environ, "XDG_DATA_HOME": folder}
        with subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL) as process:
            try:
                said = first_answer(f"http://127.0.0.1:{port}", process)
                answered = time.perf_counter()
            finally:
                process.terminate()
        seconds = {"install": round(installed - begin, 1), "answer": round(answered - begin, 1)}
    record = {"machine": machine(), "seconds": seconds, "said": said}
    (HERE / "results" / "first_answer.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
