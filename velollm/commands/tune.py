"""`velollm tune`: settings for an engine, with reasons; written, measured, searched for, undone."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from types import FrameType
from typing import Any, NoReturn

import attrs
import orjson

from velollm.errors import ConfigError
from velollm.hardware import LocalHost, Machine, detect
from velollm.hardware.apart import run_apart
from velollm.tuning import TARGETS, Target, tune
from velollm.tuning.applying import apply, undo
from velollm.tuning.llama_server import parse_flags
from velollm.tuning.measuring import Load, measure
from velollm.tuning.native import build_native, remove_native
from velollm.tuning.ollama import DEFAULTS
from velollm.tuning.places import find_place, state_folder
from velollm.tuning.rendering import FORMATS, render
from velollm.tuning.searching import Values, candidates, knobs, search
from velollm.tuning.trials import EmbeddedTrial, LlamaServerTrial, OllamaTrial, Trial
from velollm.tuning.tuner import engine_binary, engine_help, find_model
from velollm.tuning.variables import VARIABLES
from velollm.tuning.verifying import WORTH, Verdict, verify

__all__ = ["configure", "end_trials_with_us", "run"]

CONFIRMATIONS = 2
COMPARED = VARIABLES.keys() - {"OLLAMA_HOST", "OLLAMA_MODELS", "OLLAMA_DEBUG"}

EXAMPLES = """\
examples:
  velollm tune ollama --clients 8                    what to set, and why
  velollm tune ollama --format systemd               the same as a drop-in for systemd
  velollm tune ollama --clients 8 --apply --verify   measure it against the defaults; write it if it pays
  velollm tune ollama --undo                         put back what was there before
  velollm tune llama-server --model model.gguf --search --budget 300
  velollm tune velo --native-build                   llama.cpp for this very CPU, from the wheel's own source
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm tune`."""
    parser.description = "The settings that an engine should have on this machine, each with its reason."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", nargs="?", choices=TARGETS, default="ollama", help="what to tune (default: ollama)")
    parser.add_argument("--model", help="an installed model or a GGUF file (default: what is loaded, or installed)")
    parser.add_argument("--clients", type=int, default=4, help="how many ask at once (default: 4)")
    parser.add_argument("--context", type=int, metavar="TOKENS", help="the longest conversation")
    parser.add_argument("--format", choices=sorted(FORMATS), default="shell", help="the form of the output")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--apply", action="store_true", help="write it where the service reads it, and keep a backup")
    parser.add_argument("--undo", action="store_true", help="put back what --apply replaced")
    parser.add_argument("--force", action="store_true", help="with --undo: even if the file was edited since")
    parser.add_argument("--to", type=Path, metavar="FILE", help="with --apply: write this file instead")
    parser.add_argument(
        "--verify", action="store_true", help="measure before and after in turns; keep it only if it pays"
    )
    parser.add_argument("--search", action="store_true", help="try what arithmetic cannot settle (threads, batch, ...)")
    parser.add_argument(
        "--budget", type=float, default=120.0, metavar="SECONDS", help="time for --search (default: 120)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of --verify (default: 3)")
    parser.add_argument("--tokens", type=int, default=48, help="length of a measured answer (default: 48)")
    parser.add_argument(
        "--native-build",
        action="store_true",
        help="velo: compile llama.cpp for this CPU, and use it if it pays; with --undo, go back to the wheel",
    )
    parser.add_argument("--binary", metavar="PATH", help="the engine's program, where it is not on the PATH")


def run(args: argparse.Namespace) -> int:
    """Tune: 0 when it was done (or kept), 1 when it could not be, or did not pay."""
    host = LocalHost()
    state = state_folder(host)
    end_trials_with_us()
    try:
        if args.native_build:
            return _native_build(args, host)
        if args.undo:
            return _undo(args, state)
        if args.clients < 1 or args.rounds < 1 or args.tokens < 1 or args.budget <= 0:
            raise ConfigError("--clients, --rounds, --tokens and --budget must be above 0")
        machine = detect(host, bandwidth=False)
        job = _Job(args, host, machine)
        return job.run(state)
    except ConfigError as error:
        sys.stderr.write(f"velollm tune: {error.message}\n")
        return 1


class _Job:
    """One call: the tuning, improved by a search, judged by a verification, written where it is read."""

    def __init__(self, args: argparse.Namespace, host: LocalHost, machine: Machine) -> None:
        self.args = args
        self.host = host
        self.machine = machine
        self.target: Target = args.target
        self.tuning = tune(
            self.target,
            model=args.model,
            clients=args.clients,
            context=args.context,
            machine=machine,
            host=host,
            binary=args.binary,
        )
        self.load = Load(clients=args.clients, tokens=args.tokens)
        self.verdict: Verdict | None = None
        self.searched: dict[str, Any] | None = None

    def run(self, state: Path) -> int:
        """Do what was asked, and say what came of it."""
        if self.args.search:
            self._search()
        if self.args.verify:
            self.verdict = verify(
                self._trial(self._defaults()), self._trial(self.tuning.values), self.load,
                rounds=self.args.rounds, say=_say,
            )  # fmt: skip
            self.tuning = attrs.evolve(self.tuning, gain=round(self.verdict.gain, 3))
        applied = None
        kept = self.verdict is None or self.verdict.kept
        if self.args.apply and kept:
            place = find_place(self.target, self.host, named=self.args.to)
            form = place.form if place.form in FORMATS else "shell"
            written = apply(self.tuning, place, self._text(form), state)
            applied = {"path": str(written.path), "then": place.then, "backup": written.previous is not None}
        self._print(applied)
        return 0 if kept else 1

    def _text(self, form: str) -> str:
        variables = parse_flags(self._help()) if self.target == "llama-server" else {}
        return render(self.tuning, form, variables={name: value for name, value in variables.items() if value})

    def _help(self) -> str:
        return engine_help(self.target, self.host, self.machine, self.args.binary)

    def _print(self, applied: dict[str, Any] | None) -> None:
        if self.args.json:
            facts = attrs.asdict(self.tuning, recurse=True) | {
                "applied": applied,
                "search": self.searched,
                "verify": attrs.asdict(self.verdict) if self.verdict is not None else None,
            }
            sys.stdout.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")
            return
        if not self.args.apply:
            sys.stdout.write(self._text(self.args.format))
        for note in self.tuning.notes:
            _say(f"note: {note}")
        if self.verdict is not None:
            _say(self.verdict.words)
        if applied is not None:
            sys.stdout.write(f"written: {applied['path']}\nnow: {applied['then']}\n")
            sys.stdout.write(f"to go back: velollm tune {self.target} --undo\n")

    # ---- trials ----

    def _defaults(self) -> dict[str, str]:
        """What it does now: the running service's own settings where they are known, else the engine's defaults."""
        if self.target == "ollama":
            running = next((one for one in self.machine.engines if one.kind == "ollama"), None)
            known = running.settings if running is not None else {}
            return {**DEFAULTS, **{name: value for name, value in known.items() if name in COMPARED}}
        if self.target == "velo":
            return {}
        context = int(self.tuning.values.get("--ctx-size", "4096")) // int(self.tuning.values.get("--parallel", "1"))
        return {"--parallel": "1", "--ctx-size": str(context)}

    def _trial(self, values: Values) -> Trial:
        """An engine of our own with these settings, beside the one that serves."""
        binary = self.args.binary or engine_binary(self.target, self.host, self.machine)
        name, path = find_model(self.args.model, self.machine, self.host)
        if self.target == "ollama":
            if binary is None:
                raise ConfigError("ollama is not on the PATH: name its program with --binary to measure it")
            return OllamaTrial(binary, _ollama_name(name, self.machine), values, os.environ)
        if path is None:
            raise ConfigError("a measurement needs a model: say --model, or `velollm models install smollm2`")
        if self.target == "llama-server" and binary is not None:
            return LlamaServerTrial(binary, path, values, os.environ)
        slots = {"slots": str(min(self.load.clients, 4))} if self.target == "velo" else {}
        return EmbeddedTrial(path, {**slots, **values}, os.environ)

    def _search(self) -> None:
        known = parse_flags(self._help()) if self.target == "llama-server" else {}
        if self.target == "llama-server" and not known:  # the wheel, which has them
            known = {"--spec-type": ""}
        options = candidates(self.tuning, knobs(self.tuning, self.machine, known))
        if self.target == "ollama":
            options = [{**self.tuning.values, **values} for values in options]

        def evaluate(values: Values, effort: int) -> float:
            try:
                with self._trial({**self.tuning.values, **values}) as trial:
                    found = [
                        run_apart(measure(trial.url, trial.kind, trial.model, self.load, key=trial.key, seed=seed))
                        for seed in range(1, effort + 1)
                    ]
            except ConfigError as error:
                _say(f"{_short(values, self.tuning.values)}: {error.message.splitlines()[-1][:120]}")
                return 0.0
            score = fmean(one.throughput for one in found) if not any(one.failed for one in found) else 0.0
            _say(f"{score:8.1f} tokens/s  {_short(values, self.tuning.values)}")
            return score

        found = search(options, evaluate, budget=self.args.budget, clock=time.monotonic)
        self.searched = {
            "trials": found.trials,
            "score": found.score,
            "start_score": found.start_score,
            "values": dict(found.values),
        }
        if found.trials < len(options):
            _say(f"{found.trials} of {len(options)} candidates were tried: a longer --budget tries the rest")
        if found.score > WORTH * found.start_score:
            gain = _again(options[0], found.values, evaluate)
            if gain < WORTH:
                _say(f"withdrawn: measured again in turns, the best of {found.trials} trials does not pay")
                return
            why = f"the best of {found.trials} trials ({found.score:.1f} tokens/s, {gain:.2f} x the computed settings)"
            changed = {name: value for name, value in found.values.items() if options[0].get(name) != value}
            self.tuning = self.tuning.with_values(changed, why)


def _again(start: Values, best: Values, evaluate: Callable[[Values, int], float]) -> float:
    """What `best` gains over `start`, both measured anew in turns: the best of many is often only the luckiest."""
    pairs = [(evaluate(start, 1), evaluate(best, 1)) for _ in range(CONFIRMATIONS)]
    before, after = (fmean(pair[side] for pair in pairs) for side in (0, 1))
    return after / before if before else 0.0


def end_trials_with_us() -> None:
    """Have a signal to end this process end the engines on trial as well."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _native_build(args: argparse.Namespace, host: LocalHost) -> int:
    if args.target != "velo":
        raise ConfigError(f"a native build is for velo, not for {args.target}")
    if args.undo:
        done = "removed" if remove_native() else "there was none"
        sys.stdout.write(orjson.dumps({"done": done}).decode() + "\n" if args.json else f"native build: {done}\n")
        return 0
    machine = detect(host, bandwidth=False)
    _, path = find_model(args.model, machine, host)
    built = build_native(path, say=_say, threads=machine.cpu.usable_cores)
    if args.json:
        facts = attrs.asdict(built) | {"folder": str(built.folder)}
        sys.stdout.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(f"native build: {built.words}\n")
    return 0 if built.kept else 1


def _undo(args: argparse.Namespace, state: Path) -> int:
    undone = undo(args.target, state, force=args.force)
    what = "put back" if undone.previous is not None else "removed"
    if args.json:
        sys.stdout.write(orjson.dumps({"path": str(undone.path), "done": what}).decode() + "\n")
    else:
        sys.stdout.write(f"{what}: {undone.path}\nrestart {args.target} for it to take effect\n")
    return 0


def _ollama_name(name: str, machine: Machine) -> str:
    """The name under which Ollama knows a model; the loaded or the first one for none."""
    engine = next((one for one in machine.engines if one.kind == "ollama"), None)
    known = engine.models if engine is not None else ()
    if name and not name.endswith(".gguf"):
        return name
    if known:
        return known[0]
    raise ConfigError("a measurement needs a model that Ollama has: say --model NAME")


def _short(values: Values, known: Values) -> str:
    changed = {name: value for name, value in values.items() if known.get(name) != value}
    return " ".join(f"{name}={value}" for name, value in changed.items()) or "as computed"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
