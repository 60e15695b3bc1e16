"""Feed the readers of `fuzz_targets` with inputs that atheris (libFuzzer) invents, guided by the lines they reach.

    pip install atheris
    python tests/fuzz.py clients --seconds 600
    python tests/fuzz.py tool_calls crash-…          # once more, with what was found

It stops at the first input that is a fault, or that takes a second and as long again for every 128 KiB (lines are
counted meanwhile, and most inputs are read twice: ten times the usual), and writes it to a file. Without a target it
takes all, one after the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST = 64 * 1024  # bytes of an input
SECONDS = 1.0
SECONDS_EACH = 0.5  # for 64 KiB


def fuzz(name: str, seconds: int, corpus: Path) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["velollm"]):
        from support.fuzz_targets import TARGETS

    target = TARGETS[name]
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)

    def run(data: bytes) -> None:
        begun = time.thread_time()
        target.run(data)
        taken = time.thread_time() - begun
        assert taken < SECONDS + SECONDS_EACH * len(data) / MOST, f"{taken:.2f} s"

    options = [f"-max_total_time={seconds}", f"-max_len={MOST}", "-timeout=30", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], str(corpus), *options], run)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?")
    parser.add_argument("inputs", nargs="*", type=Path, help="files to try, in place of inventing some")
    parser.add_argument("--seconds", type=int, default=600, help="for each target (default: 600)")
    args = parser.parse_args()
    if args.target is not None and not args.inputs:  # before anything of it is imported: atheris sees to that
        with tempfile.TemporaryDirectory() as corpus:
            fuzz(args.target, args.seconds, Path(corpus))
    from support.fuzz_targets import TARGETS

    for path in args.inputs:
        TARGETS[args.target].run(path.read_bytes())
    if args.inputs:
        return 0
    failed = [
        name for name in TARGETS
        if subprocess.run([sys.executable, __file__, name, "--seconds", str(args.seconds)]).returncode
    ]  # fmt: skip
    sys.stderr.write(f"faults in: {', '.join(failed) or 'none'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
