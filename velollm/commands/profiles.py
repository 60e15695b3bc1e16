"""`velollm profiles`: tuned settings to share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import attrs
import orjson

from velollm.errors import ConfigError
from velollm.hardware import LocalHost, detect
from velollm.models.gguf import GGUFError, parameter_size, read_model
from velollm.tuning import TARGETS, Tuning, tune
from velollm.tuning.applying import apply, last_applied
from velollm.tuning.places import find_place, state_folder
from velollm.tuning.profiles import export_profile, import_profile, mismatches
from velollm.tuning.rendering import FORMATS, render
from velollm.tuning.tuner import find_model

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm profiles export > ollama-8-clients.toml      what is applied (or computed), without anything personal
  velollm profiles import ollama-8-clients.toml        check it, and show what it sets
  velollm profiles import ollama-8-clients.toml --apply
"""
LARGEST = 1 << 20


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm profiles`."""
    parser.description = "Tuned settings as TOML: with the class of hardware and the measured gain, nothing personal."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    out = actions.add_parser("export", help="print the settings that are applied, else those that would be")
    out.add_argument("target", nargs="?", choices=TARGETS, default="ollama")
    out.add_argument("--model", help="the model that they are for")
    out.add_argument("--clients", type=int, default=4, help="how many ask at once, where nothing is applied yet")
    out.add_argument("--json", action="store_true", help="print it as JSON")
    into = actions.add_parser("import", help="check a profile, and show or apply it")
    into.add_argument("file", type=Path, help="the TOML file; - for standard input")
    into.add_argument("--format", choices=sorted(FORMATS), default="shell", help="the form of the output")
    into.add_argument("--apply", action="store_true", help="write it where the service reads it, and keep a backup")
    into.add_argument("--to", type=Path, metavar="FILE", help="with --apply: write this file instead")
    into.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Export or import: 0 when it was done, 1 when it could not be."""
    try:
        return _export(args) if args.action == "export" else _import(args)
    except ConfigError as error:
        sys.stderr.write(f"velollm profiles {args.action}: {error.message}\n")
        return 1


def _export(args: argparse.Namespace) -> int:
    host = LocalHost()
    machine = detect(host, bandwidth=False)
    applied = last_applied(state_folder(host), args.target)
    tuning: Tuning = tune(args.target, model=args.model, clients=args.clients, machine=machine, host=host)
    if applied is not None:
        tuning = attrs.evolve(tuning, settings=(), gain=applied.gain).with_values(applied.settings, "")
    text = export_profile(tuning, machine, model=_kind(find_model(args.model, machine, host)[1]))
    if args.json:
        _print_json(attrs.asdict(import_profile(text)))
    else:
        sys.stdout.write(text)
    return 0


def _import(args: argparse.Namespace) -> int:
    host = LocalHost()
    profile = import_profile(_read(args.file), name=str(args.file))
    differences = mismatches(profile, detect(host, bandwidth=False, engines=False))
    for difference in differences:
        sys.stderr.write(f"made for another machine: {difference}\n")
    tuning = profile.tuning
    applied = None
    if args.apply:
        place = find_place(tuning.target, host, named=args.to)
        text = render(tuning, place.form if place.form in FORMATS else "shell")
        applied = str(apply(tuning, place, text, state_folder(host)).path)
    if args.json:
        _print_json({**attrs.asdict(profile), "mismatches": differences, "applied": applied})
    elif applied:
        sys.stdout.write(f"written: {applied}\nto go back: velollm tune {tuning.target} --undo\n")
    else:
        sys.stdout.write(render(tuning, args.format))
    return 0


def _read(path: Path) -> str:
    try:
        if str(path) == "-":
            return sys.stdin.read(LARGEST)
        with path.open(encoding="utf-8") as file:
            return file.read(LARGEST)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _kind(path: Path | None) -> str:
    """A model by its kind, not by the name of its file."""
    if path is None:
        return ""
    try:
        model = read_model(path)
    except GGUFError:
        return ""
    return " ".join(word for word in (model.architecture, parameter_size(model.parameters), model.quantization) if word)


def _print_json(value: object) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
