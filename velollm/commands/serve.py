"""`velollm serve`: finds or starts an engine, puts the proxy in front of it, and says what it serves."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from velollm.commands.progress import ProgressBar
from velollm.config import (
    BackendSettings,
    Option,
    Settings,
    load_settings,
    options,
    show_concurrency,
    show_seconds,
    show_size,
)
from velollm.errors import ConfigError

if TYPE_CHECKING:
    from velollm.discovery import Found

__all__ = ["configure", "run"]

logger = logging.getLogger("velollm.serve")

EXAMPLES = """\
examples:
  velollm serve                                   finds a running engine, or brings a small model of its own
  velollm serve --backend http://gpu:11434        in front of this engine, whatever it is
  velollm serve --backend fast=ollama://gpu:11434 --backend openai+http://localhost:8001/v1
  velollm serve --model ./qwen3-8b-q4.gguf --ctx 16384
  velollm serve --host 0.0.0.0 --keys keys.toml

Every option is also a variable (VELOLLM_PORT) and a key in velollm.toml ([server] port); options count more than
variables, variables more than the file.
"""
TITLES = {
    "": "engines", "server": "server", "defaults": "what engines are given", "engine": "models that run here",
    "scheduling": "waiting", "routing": "choice of engines", "cache": "cache", "toolcalls": "tool calls",
    "observability": "observation",
}  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `velollm serve`: one for each setting."""
    parser.description = "Run the proxy: OpenAI's, Anthropic's and Ollama's API in front of any engine."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print what is served as one line of JSON")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for option in options():
        group = groups.get(option.section)
        if group is None:
            group = groups[option.section] = parser.add_argument_group(TITLES.get(option.section, option.section))
        group.add_argument(
            option.flag,
            dest=option.dest,
            action="append" if option.many else "store",
            metavar=option.metavar or None,
            choices=option.choices or None,
            help=_help(option),
        )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    settings = load_settings(vars(args), config=args.config)
    _set_up_log(args, settings)
    from velollm.server.app import create_app, is_loopback
    from velollm.server.runner import bind, run_server

    server = settings.server
    if not is_loopback(server.host) and server.keys is None:
        raise ConfigError(
            f"listening on {server.host} would let others on the network use this server, and no keys are set: "
            "name a file of keys with --keys FILE, or listen on 127.0.0.1"
        )
    sockets = bind(server.host, server.port)
    try:
        port: int = sockets[0].getsockname()[1]
        settings = attrs.evolve(settings, server=attrs.evolve(server, port=port))
        if not settings.backends and not settings.engine.models:
            settings = _with_an_engine(settings, quiet=args.quiet)
        _install_missing(settings, quiet=args.quiet)
        app = create_app(settings)
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    from velollm.commands.serving import announce

    return run_server(app, sockets, lambda: announce(app, as_json=args.json))


def _set_up_log(args: argparse.Namespace, settings: Settings) -> None:
    from velollm.observability.logs import configure_logging

    level = "debug" if args.verbose else "warning" if args.quiet else settings.server.log_level
    configure_logging(level, settings.server.log_format)


def _help(option: Option) -> str:
    default = option.default
    if default in (None, ()):
        return option.about
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif option.metavar == "N|auto":
        default = show_concurrency(default)
    elif option.metavar == "SIZE":
        default = show_size(default)
    elif option.metavar == "SECONDS":
        default = show_seconds(default)
    return f"{option.about} (default: {default})"


# ---- when nothing was named ------------------------------------------------------------------------------------------


def _with_an_engine(settings: Settings, *, quiet: bool, environ: Mapping[str, str] = os.environ) -> Settings:
    """The engines that run here, as backends; without any, the default model."""
    from velollm.discovery import ENGINES, find_engines, places

    found = asyncio.run(find_engines(places(environ), ports_not={settings.server.port}))
    if found:
        for engine in found:
            logger.info("found %s at %s", engine.kind, engine.url)
        return attrs.evolve(settings, backends=_as_backends(found))
    looked = ", ".join(f"{name} ({url.rpartition(':')[2]})" for url, name in ENGINES.items())
    from velollm.models import DEFAULT_MODEL

    if find_spec("xllamacpp") is None:
        raise ConfigError(
            f"no engine runs here (looked for {looked}), and there is no llama.cpp to run a model with: "
            'start one of them, name one with --backend URL, or pip install "velollm[llamacpp]"'
        )
    logger.info("no engine runs here (looked for %s); running the default model, %s", looked, DEFAULT_MODEL)
    return attrs.evolve(settings, engine=attrs.evolve(settings.engine, models=(DEFAULT_MODEL,)))


def _as_backends(found: list[Found]) -> tuple[BackendSettings, ...]:
    kinds = [engine.kind for engine in found]
    return tuple(
        BackendSettings(
            url=engine.backend_url,
            name=engine.kind if kinds.count(engine.kind) == 1 else f"{engine.kind}-{engine.url.rpartition(':')[2]}",
        )
        for engine in found
    )


def _install_missing(settings: Settings, *, quiet: bool) -> None:
    """Install models of the catalog that are named and not here yet. Raises `InstallError`."""
    from velollm.commands.models import models_folder
    from velollm.models import find, install
    from velollm.models.catalog import catalog_model

    folder: Path = models_folder(None)
    for model in settings.engine.models:
        if catalog_model(model) is not None and find(model, folder) is None:
            with ProgressBar(sys.stderr, quiet=quiet) as progress:
                installed = install(model, folder=folder, progress=progress)
            logger.info("%s is installed: %s", installed.name, installed.path)
