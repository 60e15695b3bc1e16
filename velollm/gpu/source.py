"""The sources of the kernels, as one text each: headers of our own are put in where they are included."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

__all__ = ["read_source"]

INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)


@cache
def read_source(name: str) -> str:
    """The source `name` (`paged_decode.cu`) with its headers inside, each once, so that the compiler reads no file."""
    return _with_headers(name, set())


def _with_headers(name: str, seen: set[str]) -> str:
    seen.add(name)
    text = files("velollm.cuda").joinpath(name).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return INCLUDE.sub(lambda found: "" if found[1] in seen else _with_headers(found[1], seen), text)
