"""The command line: finds the subcommand, sets up the log, and leaves the rest to `velollm.commands`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from velollm._version import __version__
from velollm.errors import ConfigError
from velollm.observability.logs import configure_logging, give_up

__all__ = ["main"]

# Name of the command, its module, and what it does.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "serve": ("velollm.commands.serve", "run the proxy in front of an engine"),
    "models": ("velollm.commands.models", "list, install, show and remove local models"),
    "cache": ("velollm.commands.cache", "answers that are kept: statistics, report, purge, export"),
    "embed": ("velollm.commands.embed", "install the embedder of the semantic cache"),
    "detect": ("velollm.commands.detect", "say what this machine is"),
    "bench": ("velollm.commands.bench", "measure how fast an engine answers"),
    "benchmark": ("velollm.commands.bench", "the same as bench"),
    "tune": ("velollm.commands.tune", "configure an engine for this machine"),
    "optimize": ("velollm.commands.tune", "the same as tune"),
    "profile": ("velollm.commands.profile", "say where a request's time goes"),
    "speculative": ("velollm.commands.speculative", "find the draft that pays"),
    "profiles": ("velollm.commands.profiles", "share tuned settings"),
    "doctor": ("velollm.commands.doctor", "say what is wrong, and what mends it"),
    "kernels": ("velollm.commands.kernels", "list, compile and check the CUDA kernels"),
    "keys": ("velollm.commands.keys", "add, list and revoke API keys"),
}
EXAMPLES = """\
examples:
  velollm serve                                   find a running engine, or bring a small model
  velollm serve --backend http://gpu:11434        in front of this one
  velollm serve --model ./model.gguf              run this one here
  velollm models install smollm2
"""

OK, FAILED, USAGE, NO_START = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `velollm`; returns the exit status: 0 ok, 1 failed, 2 usage, 3 could not start."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(given)
    args = parser.parse_args(given)
    configure_logging(_level(args), "text")
    command = import_module(COMMANDS[args.command][0])
    try:
        status: int = command.run(args)
    except ConfigError as error:
        for line in error.message.splitlines():
            sys.stderr.write(f"velollm {args.command}: {line}\n")
        return USAGE if error.message.startswith("--") else NO_START
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError as error:  # whoever read our output has seen enough
        give_up(sys.stdout, error)
        return FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                give_up(stream, error)
    return status


def _parser(given: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velollm",
        description="The autopilot for local LLM inference, in front of Ollama, llama.cpp or any OpenAI API.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"velollm {__version__}")
    _add_common(parser, None)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in given if word in COMMANDS), None)
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about.capitalize(), allow_abbrev=False)
        _add_common(command, argparse.SUPPRESS)
        if name == wanted:  # the others' modules are not imported
            import_module(module).configure(command)
    return parser


def _add_common(parser: argparse.ArgumentParser, default: str | None) -> None:
    """What every command takes, before or behind its name."""
    parser.add_argument(
        "-v", "--verbose", action="store_true", default=default or False, help="say more on standard error"
    )
    parser.add_argument("-q", "--quiet", action="store_true", default=default or False, help="say only what is wrong")
    parser.add_argument("--config", type=Path, metavar="FILE", default=default, help="the TOML file of settings")


def _level(args: argparse.Namespace) -> str:
    return "debug" if args.verbose else "warning" if args.quiet else "info"
