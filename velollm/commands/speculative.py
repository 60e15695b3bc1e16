"""`velollm speculative`: which draft pays for a model on this machine, proved by runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from velollm.bench.dataset import read_questions
from velollm.bench.question import Question
from velollm.bench.workload import PROFILES, questions
from velollm.commands.tune import end_trials_with_us
from velollm.errors import BackendError, ConfigError
from velollm.hardware import LocalHost, Machine, detect
from velollm.hardware.detection import models_folder
from velollm.models.gguf import GGUF, GGUFError, read_model
from velollm.models.lookup import list_installed
from velollm.speculation.methods import HEADS, Draft, fits, heads, methods, usable
from velollm.speculation.trying import Estimate, Findings, Proof, find_draft
from velollm.tuning.llama_server import parse_flags
from velollm.tuning.trials import EmbeddedTrial, LlamaServerTrial, Trial
from velollm.tuning.tuner import engine_binary, engine_help, find_model

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm speculative --model smollm2                         on code, the usual place where drafts pay
  velollm speculative --model qwen3-8b --dataset-path mine.jsonl --clients 4
  velollm speculative --model big.gguf --draft small.gguf
"""
CONTEXT = 4096
LARGEST = 1 << 28


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm speculative`."""
    parser.description = "Which draft pays here: acceptance on your prompts, step costs, and proof by a run."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", help="an installed model or a GGUF file (default: what is loaded, or installed)")
    parser.add_argument(
        "--draft", type=Path, action="append", default=[], metavar="FILE",
        help="a smaller model with the same vocabulary; repeatable (default: those installed that fit)",
    )  # fmt: skip
    parser.add_argument("--dataset-path", type=Path, metavar="FILE", help="your own prompts, as in `velollm bench`")
    chats = sorted(name for name, profile in PROFILES.items() if not profile.embeds)
    parser.add_argument("--profile", choices=chats, default="code", help="made-up prompts without any (default: code)")
    parser.add_argument("--clients", type=int, default=1, help="how many ask at once (default: 1)")
    parser.add_argument("--num-prompts", type=int, default=4, metavar="N", help="questions a round (default: 4)")
    parser.add_argument("--output-len", type=int, default=128, metavar="TOKENS", help="longest answer (default: 128)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each proof (default: 3)")
    parser.add_argument("--no-verify", action="store_true", help="predict only")
    parser.add_argument("--binary", metavar="PATH", help="llama-server, where it is not on the PATH")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Find the draft that pays: 0 when one does or none is wanted, 1 when none does or it could not be found out."""
    if min(args.clients, args.num_prompts, args.output_len, args.rounds) < 1:
        raise ConfigError("--clients, --num-prompts, --output-len and --rounds must be above 0")
    end_trials_with_us()
    try:
        job = _Job(args)
        findings = job.run()
    except (ConfigError, BackendError) as error:
        sys.stderr.write(f"velollm speculative: {error.message}\n")
        return 1
    if args.json:
        facts = attrs.asdict(findings) | {"model": job.name, "clients": args.clients, "heads": job.heads}
        facts["costs"] = {str(size): cost for size, cost in findings.costs.items()}
        facts["flags"] = dict(findings.best.flags) if findings.best is not None else None
        sys.stdout.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")
    else:
        sys.stdout.write(_render(findings, job))
    return 0 if args.no_verify or findings.best is not None else 1


class _Job:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.host = LocalHost()
        self.machine: Machine = detect(self.host, bandwidth=False)
        self.name, path = find_model(args.model, self.machine, self.host)
        if path is None:
            raise ConfigError("which model? say --model, or `velollm models install smollm2`")
        self.path = path
        self.model = read_model(path)
        binary = args.binary or engine_binary("llama-server", self.host, self.machine)
        self.binary = binary
        text = engine_help("llama-server", self.host, self.machine, args.binary) if binary else ""
        self.variables = parse_flags(text)
        if text and "--spec-type" not in self.variables:
            raise ConfigError(f"{binary} is too old to draft: it knows no --spec-type")
        self.heads = [*map(attrs.asdict, heads(self.model)), *_installed_heads(_installed(self.host))]

    def run(self) -> Findings:
        """Predict and prove."""
        known = self.variables.keys()
        found = usable(methods(self.model, self._drafts()), known)
        if self.binary is None:  # the wheel loads no heads
            found = [method for method in found if method.kind != "draft-mtp"]
        return find_draft(
            self._trial({}), lambda method: self._trial(method.flags), found, self._rounds(),
            clients=self.args.clients, verify=not self.args.no_verify, say=_say,
        )  # fmt: skip

    def _trial(self, flags: Any) -> Trial:
        clients = self.args.clients
        base = {"--parallel": str(clients), "--ctx-size": str(CONTEXT * clients)}
        if self.machine.cpu.usable_cores and not self.machine.gpus:
            base["--threads"] = str(self.machine.cpu.usable_cores)
        if self.binary is not None:
            return LlamaServerTrial(self.binary, self.path, {**base, **flags}, os.environ)
        return EmbeddedTrial(self.path, {**base, **flags}, os.environ)

    def _drafts(self) -> list[Draft]:
        given: Sequence[Path] = self.args.draft
        found = []
        for path in given or [one for one in _installed(self.host) if one != self.path]:
            try:
                draft = read_model(path)
            except GGUFError as error:
                if given:
                    raise ConfigError(error.message) from error
                continue
            if fits(self.model, draft):
                found.append(Draft(path=path, share=_share(draft, self.model)))
            elif given:
                raise ConfigError(f"{path} cannot draft for {self.name}: it must be smaller, with the same vocabulary")
        return found

    def _rounds(self) -> list[list[Question]]:
        """Questions for the study and for each round of proof; no question twice, where there are enough."""
        args = self.args
        count = args.num_prompts * (args.rounds + 1)
        if args.dataset_path is None:
            asked = questions(args.profile, count, seed=1, answer=args.output_len)
        else:
            text = _read(args.dataset_path)
            own = read_questions(text, args.dataset_path.name, count=count)
            asked = [attrs.evolve(one, max_tokens=args.output_len) for one in own]
            if len({one.text for one in asked}) < count:
                _say(f"note: {count} prompts would be best, so that none is asked twice")
        return [asked[start : start + args.num_prompts] for start in range(0, count, args.num_prompts)]


def _share(draft: GGUF, model: GGUF) -> float:
    """What a step of the draft costs against one of the model: both read their weights once."""
    return sum(tensor.size for tensor in draft.tensors) / max(sum(tensor.size for tensor in model.tensors), 1)


def _installed(host: LocalHost) -> list[Path]:
    return [one.path for one in list_installed(Path(models_folder(host)).expanduser())]


def _installed_heads(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Files that are heads, such as EAGLE's: they belong to a model of their own."""
    found = []
    for path in paths:
        try:
            header = read_model(path)
        except GGUFError:
            continue
        if header.architecture in HEADS:
            kind = HEADS[header.architecture]
            found.append({"kind": kind, "count": 1, "where": str(path)})
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _render(findings: Findings, job: _Job) -> str:
    clients = job.args.clients
    lines = [
        f"{job.name}, {clients} client{'s' if clients > 1 else ''} at once, {findings.tpot * 1000:.1f} ms a token",
        "cost of a step of so many tokens, against one: "
        + ", ".join(f"{size}: {cost:.2f}" for size, cost in sorted(findings.costs.items()) if size > 1),
        "",
        f"{'':<62}{'accepted':>9}{'expected':>10}{'measured':>10}",
    ]
    proofs = {proof.method.name: proof for proof in findings.proofs}
    lines += [_row(one, proofs.get(one.method.name)) for one in findings.estimates]
    lines += [f"head: {head['kind']}, {head['where']}" for head in job.heads]
    lines += ["", *_advice(findings, job)]
    return "\n".join(lines) + "\n"


def _row(one: Estimate, proof: Proof | None) -> str:
    acceptance, expected = one.acceptance, one.gain
    measured = verdict = ""
    if proof is not None:
        acceptance = proof.acceptance if proof.acceptance is not None else acceptance
        expected = proof.expected if proof.expected is not None else expected
        measured, verdict = f"{proof.gain:.2f} x", "kept" if proof.kept else "withdrawn"
    accepted = "-" if acceptance is None else f"{acceptance:.0%}"
    return f"{one.method.name[:61]:<62}{accepted:>9}{expected:>8.2f} x{measured or '-':>10}  {verdict}".rstrip()


def _advice(findings: Findings, job: _Job) -> list[str]:
    best = findings.best
    if best is None:
        if job.args.no_verify:
            return ["predictions only: without --no-verify they are proved by a run"]
        return ["no draft pays here: leave it off"]
    found = [f"use: llama-server -m {job.path} " + " ".join(f"{flag} {value}" for flag, value in best.flags.items())]
    named = {flag: job.variables.get(flag, "") for flag in best.flags}
    if all(named.values()):
        found.append("or:  " + " ".join(f"{named[flag]}={value}" for flag, value in best.flags.items()))
    found.append(f"{findings.gain:.2f} times the tokens a second, measured in turns without and with it")
    return found


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
