"""`velollm keys add|list|revoke`: who may use the server, and how much."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import orjson

from velollm.admission.keyfile import add_key, list_keys, revoke_key
from velollm.admission.keys import CLASSES, Key
from velollm.config import config_folder, load_settings
from velollm.errors import ConfigError

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm keys add alice --keys keys.toml                          prints the key, this once
  velollm keys add nightly --keys keys.toml --priority batch --tpm 100000
  velollm keys add guest --keys keys.toml --rpm 20 --models 'qwen3*'
  velollm keys add ops --keys keys.toml --admin                    may pull and delete models
  velollm keys list --keys keys.toml
  velollm keys revoke guest --keys keys.toml

A server that runs with --keys keys.toml reads the file anew within a second.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm keys`."""
    parser.description = "The keys that clients of `velollm serve --keys FILE` need."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="the file of keys (default: [server] keys, or ~/.config/velollm/keys.toml)",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    adding = actions.add_parser("add", parents=[common], help="make a key, and print it this once")
    adding.add_argument("name", metavar="NAME", help="whose it is; shown in logs and metrics")
    adding.add_argument("--priority", choices=CLASSES, help="the class of requests that name none")
    adding.add_argument("--max-priority", choices=CLASSES, help="the most urgent class it may ask for")
    adding.add_argument("--rpm", type=int, metavar="N", help="requests a minute")
    adding.add_argument("--tpm", type=int, metavar="N", help="tokens a minute, prompts and answers together")
    adding.add_argument(
        "--models", action="append", default=[], metavar="GLOB", help="a model it may use, or a pattern; repeatable"
    )
    adding.add_argument("--admin", action="store_true", help="it may change models and empty caches")
    actions.add_parser("list", parents=[common], help="which keys there are, and what they allow")
    revoking = actions.add_parser("revoke", parents=[common], help="take a key away")
    revoking.add_argument("name", metavar="NAME", help="the name of the key")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say: 0 when it was done, 1 when it could not be."""
    actions = {"add": _add, "list": _list, "revoke": _revoke}
    try:
        actions[args.action](args, _file(args))
    except ConfigError as error:
        sys.stderr.write(f"velollm keys {args.action}: {error.message}\n")
        return 1
    return 0


def _file(args: argparse.Namespace) -> Path:
    named: Path | None = args.keys
    if named is not None:
        return named.expanduser()
    configured = load_settings({}, config=args.config).server.keys
    return config_folder() / "keys.toml" if configured is None else Path(configured).expanduser()


def _add(args: argparse.Namespace, path: Path) -> None:
    secret = add_key(
        path, args.name, priority=args.priority, max_priority=args.max_priority, rpm=args.rpm, tpm=args.tpm,
        models=tuple(args.models), admin=args.admin,
    )  # fmt: skip
    if args.json:
        _print_json({"name": args.name, "key": secret})
        return
    sys.stdout.write(f"{secret}\n")
    sys.stderr.write(f"this is the key of {args.name}, shown this once; {path} holds its hash\n")


def _list(args: argparse.Namespace, path: Path) -> None:
    keys = list_keys(path)
    if args.json:
        _print_json([_row(key) for key in keys])
        return
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        sys.stdout.write(f"{key.name:<{width}}  {_words(key)}\n")


def _revoke(args: argparse.Namespace, path: Path) -> None:
    revoke_key(path, args.name)
    if args.json:
        _print_json({"name": args.name})
    else:
        sys.stdout.write(f"{args.name} has no key any more\n")


def _row(key: Key) -> dict[str, Any]:
    return {
        "name": key.name, "priority": key.priority, "max_priority": key.max_priority, "rpm": key.rpm, "tpm": key.tpm,
        "models": list(key.models), "admin": key.admin,
    }  # fmt: skip


def _words(key: Key) -> str:
    words = [key.priority or "any priority"] if not key.max_priority else [f"up to {key.max_priority}"]
    words += [f"{value} {what} a minute" for value, what in ((key.rpm, "requests"), (key.tpm, "tokens")) if value]
    words.append("models " + ", ".join(key.models) if key.models else "all models")
    return "; ".join([*words, *(["admin"] if key.admin else [])])


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
