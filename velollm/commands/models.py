"""`velollm models list|install|show|remove`: the GGUF files on this machine, and how to get one."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from velollm.commands.progress import ProgressBar
from velollm.errors import ConfigError
from velollm.models.catalog import CATALOG
from velollm.models.folder import InstalledModel, default_folder, find_own, remove_own
from velollm.models.gguf import parameter_size, read_gguf
from velollm.models.installer import install
from velollm.models.lookup import find, list_installed

__all__ = ["configure", "models_folder", "run"]

JSON: TypeAlias = dict[str, Any]

FOLDER_VARIABLE = "VELOLLM_MODELS_DIR"
EXAMPLES = """\
examples:
  velollm models install smollm2                  the default model, checked and ready
  velollm models install ./model.gguf             a file of yours, copied (--link: linked)
  velollm models install hf:org/repo:Q4_K_M       from the hub (pip install "velollm[hub]")
  velollm models show smollm2
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm models`."""
    parser.description = "Local models: those in VeloLLM's own folder, and those that Ollama has."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument(
        "--models-dir",
        metavar="DIR",
        type=Path,
        help=f"the folder of models (default: {FOLDER_VARIABLE}, or the user's)",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", parents=[common], help="what is installed here")
    known = ", ".join(model.name for model in CATALOG)
    adding = actions.add_parser("install", parents=[common], help="get a model")
    adding.add_argument("model", help=f"{known}, a path to a GGUF file, or hf:org/repo:quant")
    adding.add_argument("--link", action="store_true", help="link to a local file instead of copying it")
    for action, words in (("show", "what a model is"), ("remove", "delete a model from the own folder")):
        one = actions.add_parser(action, parents=[common], help=words)
        one.add_argument("model", help="the name of an installed model" + (", or a path" if action == "show" else ""))


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say: 0 when it was done, 1 when it could not be."""
    actions = {"list": _list, "install": _install, "show": _show, "remove": _remove}
    try:
        actions[args.action](args)
    except ConfigError as error:
        sys.stderr.write(f"velollm models {args.action}: {error.message}\n")
        return 1
    return 0


def models_folder(named: Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of models: the one named, else that of the environment, else the user's."""
    if named is not None:
        return named.expanduser()
    given = environ.get(FOLDER_VARIABLE)
    return Path(given).expanduser() if given else default_folder(environ)


def _list(args: argparse.Namespace) -> None:
    folder = models_folder(args.models_dir)
    models = list_installed(folder)
    if args.json:
        _print_json([_row(model) for model in models])
        return
    if not models:
        sys.stderr.write(f"no models in {folder} yet: `velollm models install {CATALOG[0].name}` gets a small one\n")
        return
    width = max(len(model.name) for model in models)
    for model in models:
        sys.stdout.write(f"{model.name:<{width}}  {_size(model.size):>9}  {model.source:<7}  {model.path}\n")


def _install(args: argparse.Namespace) -> None:
    with ProgressBar(quiet=getattr(args, "quiet", False) is True) as progress:
        model = install(args.model, folder=models_folder(args.models_dir), progress=progress, link=args.link)
    if args.json:
        _print_json({"name": model.name, "path": str(model.path)})
    else:
        sys.stdout.write(f"{model.name} is installed: {model.path}\ntry it: velollm serve --model {model.name}\n")


def _show(args: argparse.Namespace) -> None:
    path = find(args.model, models_folder(args.models_dir))
    if path is None:
        raise ConfigError(f"no model {args.model!r} is installed: `velollm models list` shows what is")
    facts = _facts(args.model, path)
    if args.json:
        _print_json(facts)
        return
    for key, value in facts.items():
        shown = ("yes" if value else "no") if isinstance(value, bool) else "?" if value in (None, "") else value
        sys.stdout.write(f"{key.replace('_', ' '):<15} {_size(value) if key == 'size' else shown}\n")


def _remove(args: argparse.Namespace) -> None:
    folder = models_folder(args.models_dir)
    if find_own(args.model, folder) is None and any(
        model.name == args.model and model.source == "ollama" for model in list_installed(folder)
    ):
        raise ConfigError(f"{args.model} belongs to Ollama: `ollama rm {args.model}` removes it")
    model = remove_own(args.model, folder)
    if args.json:
        _print_json({"name": model.name, "path": str(model.path)})
    else:
        sys.stdout.write(f"{model.name} is removed: {_size(model.size)} are free again\n")


def _facts(name: str, path: Path) -> JSON:
    header = read_gguf(path)
    template = header.chat_template
    return {
        "name": name if not name.endswith(".gguf") else path.stem,
        "path": str(path),
        "size": header.size,
        "architecture": header.architecture,
        "title": header.name,
        "parameters": header.parameters,
        "parameter_size": parameter_size(header.parameters),
        "quantization": header.quantization,
        "context_length": header.context_length,
        "chat_template": template is not None,
        "tools": template is not None and "tools" in template,
        "tensors": header.tensor_count,
        "license": header.get("general.license", str),
    }


def _row(model: InstalledModel) -> JSON:
    return {"name": model.name, "path": str(model.path), "size": model.size, "source": model.source}


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1_000_000_000 else f"{size / 1e6:.1f} MB"


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
