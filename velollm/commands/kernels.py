"""`velollm kernels list|compile|check`: the CUDA kernels, what they take of a GPU, and whether they are right on it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from velollm.errors import ConfigError
from velollm.gpu.compiler import ARCHITECTURES, CACHE_VARIABLE, Compiled, Compiler, default_cache
from velollm.gpu.device import look
from velollm.gpu.kernels import Kernel, catalogue

__all__ = ["configure", "run"]

logger = logging.getLogger("velollm.gpu")

Pair: TypeAlias = tuple[Kernel, str]  # and the architecture
WORTH_PROCESSES = 8  # so many kernels to compile

EXAMPLES = """\
examples:
  velollm kernels list
  velollm kernels compile --arch sm_90             ahead of the first request, on any machine
  velollm kernels compile --only 'paged_*_d128'    for every architecture
  velollm kernels check                            on the GPU of this machine
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm kernels`."""
    parser.description = "The CUDA kernels: compiled at run time, kept on disk, needing neither toolkit nor PyTorch."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--only", metavar="PATTERN", action="append", help="kernels of this name, with * (repeatable)")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", parents=[common, choice], help="what there is")
    compiling = actions.add_parser(
        "compile", parents=[common, choice], help="compile ahead, and say what each kernel takes"
    )
    compiling.add_argument(
        "--arch",
        metavar="sm_NN",
        action="append",
        choices=ARCHITECTURES,
        help=f"for this architecture (repeatable; default: all of {', '.join(ARCHITECTURES)})",
    )
    compiling.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help=f"the folder of compiled kernels (default: ${CACHE_VARIABLE}, or the user's)",
    )
    compiling.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=os.cpu_count() or 1,
        help="processes that compile (default: one a core)",
    )
    actions.add_parser("check", parents=[common], help="run the kernels on the GPU and compare with NumPy")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say: 0 when it was done, 1 when a check failed. Raises `ConfigError`."""
    actions = {"list": _list, "compile": _compile, "check": _check}
    return actions[args.action](args)


def _chosen(args: argparse.Namespace) -> list[Kernel]:
    kernels = [one for one in catalogue() if not args.only or any(fnmatch(one.name, only) for only in args.only)]
    if not kernels:
        raise ConfigError(f"--only: there is no kernel {' or '.join(args.only)}: `velollm kernels list` shows what is")
    return kernels


def _list(args: argparse.Namespace) -> int:
    kernels = _chosen(args)
    if args.json:
        _print_json([_row(one) for one in kernels])
        return 0
    width = max(len(one.name) for one in kernels)
    for one in kernels:
        sys.stdout.write(f"{one.name:<{width}}  {one.source:<24}  from sm_{one.minimum}\n")
    return 0


def _compile(args: argparse.Namespace) -> int:
    cache = args.cache or default_cache()
    wanted = [
        (one, architecture)
        for architecture in args.arch or ARCHITECTURES
        for one in _chosen(args)
        if int(architecture.removeprefix("sm_")) >= one.minimum
    ]
    rows = []
    for number, one in enumerate(_compiled(wanted, cache, args.jobs), 1):
        logger.info("%d of %d: %s for %s", number, len(wanted), one.kernel.name, one.architecture)
        rows.append(one)
    if args.json:
        _print_json([_report(one) for one in rows])
    else:
        _print_table(rows)
    return 0


def _compiled(wanted: Sequence[Pair], cache: Path, jobs: int) -> Iterator[Compiled]:
    """Each of `wanted`, in order; NVRTC compiles one thing at a time in a process, so that several need several."""
    compile_one = partial(_compile_one, cache)
    if jobs < 2 or len(wanted) < WORTH_PROCESSES:
        yield from map(compile_one, wanted)
        return
    with ProcessPoolExecutor(min(jobs, len(wanted)), get_context("spawn")) as pool:
        yield from pool.map(compile_one, wanted)


def _compile_one(cache: Path, pair: Pair) -> Compiled:
    return _compiler(cache).compile(*pair)


@lru_cache(1)
def _compiler(cache: Path) -> Compiler:
    return Compiler(cache)


def _print_table(rows: Iterable[Compiled]) -> None:
    line = "{:<40} {:<7} {:>9} {:>6} {:>6}\n"
    sys.stdout.write(line.format("kernel", "arch", "registers", "stack", "spills"))
    for one in rows:
        took = one.resources
        figures = (took.registers, took.stack_bytes, took.spill_bytes)
        sys.stdout.write(line.format(one.kernel.name, one.architecture, *figures))


def _check(args: argparse.Namespace) -> int:
    found = look()
    if found.missing:
        if args.json:
            _print_json({"gpu": None, "missing": found.missing, "found": found.summary})
        raise ConfigError(f"there is no GPU to check on: {found.missing}; {found.summary}")
    from velollm.gpu.check import check
    from velollm.gpu.executor import CudaExecutor

    findings = []
    for one in check(CudaExecutor()):
        findings.append(one)
        if not args.json:
            verdict = "ok" if one.ok else "WRONG"
            sys.stdout.write(f"{one.name:<48} {verdict:<6} {one.error:.1e} of at most {one.tolerance:.1e}\n")
    if args.json:
        rows = [{"name": one.name, "ok": one.ok, "error": one.error, "tolerance": one.tolerance} for one in findings]
        _print_json({"gpu": found.devices[0], "missing": "", "found": found.summary, "checks": rows})
    return 0 if all(one.ok for one in findings) else 1


def _row(kernel: Kernel) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "source": kernel.source,
        "minimum": f"sm_{kernel.minimum}",
        "macros": dict(kernel.macros),
    }


def _report(one: Compiled) -> dict[str, Any]:
    return {
        "name": one.kernel.name,
        "arch": one.architecture,
        "registers": one.resources.registers,
        "stack_bytes": one.resources.stack_bytes,
        "spill_bytes": one.resources.spill_bytes,
        "cubin_bytes": len(one.cubin),
        "cached": one.cached,
    }


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
