"""`velollm doctor`: what is wrong, and the command that mends it."""

from __future__ import annotations

import argparse
import sys
import textwrap

import orjson

from velollm.diagnosis import doctor

__all__ = ["configure", "run"]

EXAMPLES = """\
examples:
  velollm doctor
  velollm doctor --json | jq -r '.[].id'

Every finding is explained in docs/doctor.md. The exit status is 1 when there are errors or warnings.
"""
MARKS = {"error": "✗", "warning": "!", "info": "·"}
WIDTH = 96


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `velollm doctor`."""
    parser.description = "What is wrong with this machine and its engines, and the command that mends it."
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list")


def run(args: argparse.Namespace) -> int:
    """Examine: 1 when something is wrong, 0 when nothing is (what is only worth knowing does not count)."""
    findings = doctor(config=getattr(args, "config", None))
    if args.json:
        sys.stdout.write(orjson.dumps(findings, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        sys.stdout.write(_text(findings))
    return int(any(finding["severity"] != "info" for finding in findings))


def _text(findings: list[dict[str, str]]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding['severity']]} {finding['id']}")
        for key, mark in (("evidence", "  "), ("remedy", "  → ")):
            lines += textwrap.wrap(finding[key], WIDTH, initial_indent=mark, subsequent_indent="    ")
    wrong = sum(finding["severity"] != "info" for finding in findings)
    lines.append(f"{wrong} thing{'s' if wrong != 1 else ''} to mend" if wrong else "nothing is wrong")
    return "\n".join(lines) + "\n"
