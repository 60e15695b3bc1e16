"""`velollm detect`: what this machine is."""

from __future__ import annotations

import argparse
import sys

import attrs
import orjson

from velollm.hardware import detect
from velollm.hardware.report import render

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm detect                     the machine, its engines and models
  velollm detect --json | jq .gpus   for programs
  velollm detect --engine http://gpu-box:11434
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm detect`."""
    parser.description = "What this machine is: GPUs, processor, memory, limits, running engines, installed models."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--no-bandwidth",
        action="store_true",
        help="do not measure the memory's bandwidth (saves a quarter of a second)",
    )
    parser.add_argument(
        "--engine", metavar="URL", action="append", default=[], help="also ask the engine at this address; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Look, and say what was found."""
    machine = detect(bandwidth=not args.no_bandwidth, urls=args.engine)
    if args.json:
        sys.stdout.write(orjson.dumps(attrs.asdict(machine), option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(render(machine))
    return 0
