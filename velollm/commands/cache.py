"""`velollm cache stats|report|purge|export`: what the cache of a running server, or a store of its own, holds."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlencode

import orjson

from velollm.config import load_settings, show_seconds, show_size
from velollm.errors import ConfigError

__all__ = ["configure", "run"]

JSON: TypeAlias = dict[str, Any]

KEY_VARIABLE = "VELOLLM_API_KEY"
EXAMPLES = """\
examples:
  velollm cache stats                              of the server on this machine
  velollm cache report                             would the semantic tier pay, and would it be right?
  velollm cache purge --model qwen3:8b
  velollm cache report --store sqlite:cache.db     of a file, without a server
"""
MOST_EXAMPLES = 5


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm cache`."""
    parser.description = "Answers that are kept: how many, whether they pay, and how to be rid of them."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    common.add_argument("--url", metavar="URL", help="the server (default: the one that the settings describe)")
    common.add_argument("--api-key", metavar="KEY", help=f"its key (default: ${KEY_VARIABLE})")
    common.add_argument("--store", metavar="sqlite:PATH|redis://HOST", help="this store itself, without a server")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, about in (
        ("stats", "hits, misses, and what is held"),
        ("report", "what the semantic tier would have answered, and what to set"),
        ("export", "every entry as a line of JSON"),
    ):
        actions.add_parser(name, parents=[common], help=about)
    purge = actions.add_parser("purge", parents=[common], help="drop entries")
    for name in ("model", "tag", "tenant"):
        purge.add_argument(f"--{name}", metavar="NAME", help=f"those of this {name}")
    purge.add_argument("--all", action="store_true", help="everything")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say: 0 when it was done, 1 when it could not be."""
    if args.action == "purge" and not (args.all or args.model or args.tag or args.tenant):
        raise ConfigError("--all, --model, --tag or --tenant must say what to purge")
    try:
        with closing(_source(args)) as source:
            _ACTIONS[args.action](source, args)
    except _Unreachable as error:
        sys.stderr.write(f"velollm cache {args.action}: {error}\n")
        return 1
    return 0


# ---- where it is asked -----------------------------------------------------------------------------------------------


class _Unreachable(Exception):
    """Nobody answers, or the answer is no."""


class _Source(Protocol):
    """A running server, or a store."""

    def overview(self) -> JSON: ...

    def export(self) -> Iterator[JSON]: ...

    def purge(self, criteria: dict[str, str]) -> int: ...

    def close(self) -> None: ...


def _source(args: argparse.Namespace) -> _Source:
    if args.store is not None:
        return _StoreSource(args.store)
    settings = load_settings({}, config=args.config)
    server = settings.server
    host = f"[{server.host}]" if ":" in server.host else server.host
    own = f"http://{'127.0.0.1' if server.host in ('0.0.0.0', '::') else host}:{server.port}"  # noqa: S104
    source = _ServerSource(args.url or own, args.api_key or os.environ.get(KEY_VARIABLE))
    if args.url is None and settings.cache.store != "memory" and not source.is_there():
        source.close()
        sys.stderr.write(f"no server answers at {own}: this is what the store {settings.cache.store} holds\n")
        return _StoreSource(settings.cache.store)
    return source


class _ServerSource:
    def __init__(self, url: str, key: str | None) -> None:
        import httpx

        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._errors = (httpx.HTTPError, httpx.InvalidURL)
        self._url = url.rstrip("/")
        self._client = httpx.Client(headers=headers, timeout=30.0)

    def is_there(self) -> bool:
        """Whether anybody listens."""
        try:
            self._client.get(f"{self._url}/health")
        except self._errors:
            return False
        return True

    def overview(self) -> JSON:
        answer: JSON = orjson.loads(self._ask("GET", ""))
        return answer

    def export(self) -> Iterator[JSON]:
        return (orjson.loads(line) for line in self._ask("GET", "/export").splitlines())

    def purge(self, criteria: dict[str, str]) -> int:
        return int(orjson.loads(self._ask("POST", f"/purge?{urlencode(criteria or {'all': '1'})}"))["purged"])

    def close(self) -> None:
        self._client.close()

    def _ask(self, method: str, path: str) -> bytes:
        try:
            response = self._client.request(method, f"{self._url}/velollm/api/cache{path}")
        except self._errors as error:
            raise _Unreachable(
                f"no server answers at {self._url} ({error}): start `velollm serve`, name another with --url, or a "
                "store with --store"
            ) from error
        if response.status_code == 404:
            raise _Unreachable(f"the server at {self._url} keeps no answers (--cache off), or is no VeloLLM")
        if response.status_code != 200:
            raise _Unreachable(f"{self._url} answers {response.status_code}: {_reason(response.content)}")
        return response.content


def _reason(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


class _StoreSource:
    def __init__(self, store: str) -> None:
        from velollm.cache import ResponseCache

        if store.startswith("sqlite:"):
            _check_file(Path(store.removeprefix("sqlite:")))
        try:
            self._cache = ResponseCache(store=store, size=1 << 40, semantic="off")
        except (ValueError, ImportError) as error:
            raise ConfigError(f"--store: {error}") from error

    def overview(self) -> JSON:
        from velollm.cache.overview import overview

        return overview(self._cache)

    def export(self) -> Iterator[JSON]:
        from velollm.cache.overview import export_entries

        return export_entries(self._cache)

    def purge(self, criteria: dict[str, str]) -> int:
        name = criteria.get("tenant")
        if name is None:
            return self._cache.purge(**criteria)
        from velollm.cache.layer import key_tag

        others = {key: value for key, value in criteria.items() if key == "model"}
        return self._cache.purge(tag=key_tag(name), **others) + self._cache.purge(tenant=name, **others)

    def close(self) -> None:
        self._cache.close()


def _check_file(path: Path) -> None:
    """A file that is none of ours would be set aside by opening it: whoever only looks must not do that."""
    from velollm.cache.stores.file import FAULTS, find_fault

    try:
        fault = find_fault(path) if path.is_file() else "there is no such file"
    except FAULTS as error:
        fault = str(error)
    if fault:
        raise _Unreachable(f"{path} is no store of answers: {fault}")


# ---- what is shown ---------------------------------------------------------------------------------------------------


def _stats(source: _Source, args: argparse.Namespace) -> None:
    seen = source.overview()
    del seen["report"]
    if args.json:
        _print_json(seen)
        return
    store = seen["store"]
    lines = [
        ("store", f"{store['kind']}{' (degraded: in memory for now)' if store['degraded'] else ''}"),
        ("entries", f"{store['entries']}, {seen['indexed']} of them in the semantic index"),
        ("size", f"{_megabytes(store['bytes'])} of {show_size(seen['size'])}"),
        ("time to live", show_seconds(seen["ttl"])),
        ("semantic tier", seen["modes"]["semantic"]),
        ("requests", str(seen["lookups"])),
        *((f"  hits, {tier}", str(count)) for tier, count in sorted(seen["hits"].items())),
        ("  misses", str(seen["misses"] + seen["shadow_hits"])),
        *((f"  passed by, {reason}", str(count)) for reason, count in sorted(seen["bypasses"].items())),
        ("hit ratio", f"{seen['hit_ratio']:.1%} of those that may be answered"),
        ("kept", str(seen["stores"])),
        *((f"  not kept, {reason}", str(count)) for reason, count in sorted(seen["refused"].items())),
        ("evicted", str(store["evictions"])),
        ("damaged", str(store["damaged"])),
    ]
    for name, value in lines:
        sys.stdout.write(f"{name:<26} {value}\n")


def _report(source: _Source, args: argparse.Namespace) -> None:
    seen = source.overview()
    if args.json:
        _print_json(seen["report"])
        return
    # A store has no tiers of its own: what it holds was found by servers.
    mode = "" if isinstance(source, _StoreSource) else seen["modes"]["semantic"]
    sys.stdout.write("".join(_describe(route, mode) for route in seen["report"]) or _NOTHING[mode])


_NOTHING = {
    "": "nothing to report: no server that keeps its answers here has compared any yet\n",
    "shadow": "nothing to report yet: the model's next answers are compared with what the semantic tier would say\n",
    "on": "nothing to report: the semantic tier answers by itself; --semantic-cache shadow compares\n",
    "off": "nothing to report: the semantic tier is off; --semantic-cache shadow compares, and answers nobody\n",
}


def _describe(route: JSON, mode: str) -> str:
    from velollm.cache.shadow import ENOUGH

    compared, asked = route["compared"], route["compared"] + route["misses"]
    lines = [
        f"{route['route'] or '(no model named)'}{_when(route['first'], route['last'])}",
        f"  {asked} {'question' if asked == 1 else 'questions'} that had not been asked before in the same words",
        f"  {compared} of them ({compared / max(1, asked):.0%}) the semantic tier would have answered",
    ]
    if compared:
        lines += [
            f"  {route['agreed']} of those answers ({route['agreement']:.1%}) agree with what the model said",
            f"  {route['tokens_saved']} tokens and {_span(route['seconds_saved'])} of the engine would have been saved",
        ]
    if route["skipped"]:
        lines.append(f"  {route['skipped']} more questions came too fast to be compared")
    advice = _ADVICE["too few" if compared < ENOUGH else route["recommended"]]
    lines.append(f"  recommended: {advice.format(enough=ENOUGH)}")
    if route["recommended"] == mode:
        lines[-1] += " (as it is)"
    examples = route.get("disagreements", [])[-MOST_EXAMPLES:]
    if examples:
        lines.append("  where they disagreed: what was asked, whose answer it would have got, what both answers share")
        lines += [f"    {asked!r}  {stored!r}  {score:.0%}" for asked, stored, score in examples]
    return "\n".join(lines) + "\n\n"


def _when(first: float, last: float) -> str:
    begin, end = (time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (first, last))
    return f", {begin} to {end.removeprefix(begin[:11])}" if first else ""


def _span(seconds: float) -> str:
    return f"{seconds:.1f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


_ADVICE = {
    "on": "--semantic-cache on",
    "too few": "--semantic-cache shadow, for now: fewer than {enough} comparisons are too few to judge by",
    "shadow": "--semantic-cache shadow: read below where they disagreed, and whether those are the same question",
    "off": "--semantic-cache off: too many answers would have been others than the model's",
}


def _export(source: _Source, args: argparse.Namespace) -> None:
    for entry in source.export():
        sys.stdout.write(orjson.dumps(entry).decode() + "\n")


def _purge(source: _Source, args: argparse.Namespace) -> None:
    criteria = {name: value for name in ("model", "tag", "tenant") if (value := getattr(args, name)) is not None}
    purged = source.purge(criteria)
    if args.json:
        _print_json({"purged": purged})
    else:
        sys.stdout.write(f"{purged} {'entry is' if purged == 1 else 'entries are'} gone\n")


_ACTIONS = {"stats": _stats, "report": _report, "export": _export, "purge": _purge}


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.1f}MiB"


def _print_json(value: Any) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
