"""The cache's own paths: what is shown, exported and purged, and to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from support.asgi import ask
from support.backend import ScriptedBackend
from support.serving import served

from velollm.config import CacheSettings, ServerSettings, Settings

pytestmark = pytest.mark.anyio
CHAT, CACHE = "/v1/chat/completions", "/velollm/api/cache"
EGG = "How do I boil an egg?"
KEYS = {"ann": "the-key-of-ann-123456", "bob": "the-key-of-bob-123456", "root": "the-key-of-root-12345"}


def question(prompt: str = EGG) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": prompt}]}


def settings(tmp_path: Path, **cache: Any) -> Settings:
    path = tmp_path / "keys.toml"
    path.write_text(
        "".join(f'[[keys]]\nname = "{n}"\nkey = "{k}"\nadmin = {str(n == "root").lower()}\n' for n, k in KEYS.items())
    )
    return Settings(server=ServerSettings(keys=str(path)), cache=CacheSettings(**cache))


def bearer(name: str) -> str:
    return f"Bearer {KEYS[name]}"


async def test_without_keys_everything_is_shown() -> None:
    app = served(ScriptedBackend())
    for prompt in (EGG, EGG, "What is the best way to boil eggs?"):
        await ask(app, "POST", CHAT, question(prompt))
    seen = (await ask(app, "GET", CACHE)).json
    assert seen["hits"] == {"exact": 1}
    assert seen["report"][0] | {"seconds_saved": 0, "first": 1, "last": 2} == {
        "route": "tiny", "compared": 1, "agreed": 1, "misses": 1, "tokens_saved": 3, "seconds_saved": 0,
        "agreement": 1.0, "recommended": "shadow", "disagreements": [],
        "first": 1, "last": 2, "skipped": 0,
    }  # fmt: skip
    exported = (await ask(app, "GET", f"{CACHE}/export")).text.splitlines()
    assert [orjson.loads(line)["prompt"] for line in exported] == [EGG, "What is the best way to boil eggs?"]
    assert (await ask(app, "POST", f"{CACHE}/purge?model=other")).json == {"purged": 0}
    assert (await ask(app, "POST", f"{CACHE}/purge?all=1")).json == {"purged": 2}
    assert (await ask(app, "GET", CACHE)).json["store"]["entries"] == 0


@pytest.mark.parametrize("query", ["", "?colour=red", "?model=a&colour=red"])
async def test_a_purge_must_say_what(query: str) -> None:
    answer = await ask(served(ScriptedBackend()), "POST", f"{CACHE}/purge{query}")
    assert answer.status == 400


@pytest.mark.parametrize(
    ("method", "path"), [("POST", CACHE), ("GET", f"{CACHE}/purge"), ("DELETE", f"{CACHE}/export")]
)
async def test_other_methods(method: str, path: str) -> None:
    answer = await ask(served(ScriptedBackend()), method, path)
    assert (answer.status, answer.headers["allow"]) == (405, "GET" if method != "GET" else "POST")


async def test_switched_off_there_is_nothing_to_see() -> None:
    app = served(ScriptedBackend(), settings=Settings(cache=CacheSettings(enabled=False)))
    assert (await ask(app, "GET", CACHE)).status == 404


async def test_a_key_sees_its_own_entries_and_no_word_of_others(tmp_path: Path) -> None:
    from velollm.admission import KeyFile

    chosen = settings(tmp_path)
    app = served(ScriptedBackend(), settings=chosen, keys=KeyFile(Path(str(chosen.server.keys))))
    await ask(app, "POST", CHAT, question("What does Ann hide?"), authorization=bearer("ann"))
    await ask(app, "POST", CHAT, question("What does Bob hide?"), authorization=bearer("bob"))
    exports = {name: (await ask(app, "GET", f"{CACHE}/export", authorization=bearer(name))).text for name in KEYS}
    assert exports["ann"].count("\n") == exports["bob"].count("\n") == 1
    assert "Bob" not in exports["ann"]
    assert exports["root"].count("\n") == 2
    assert "hide" not in (await ask(app, "GET", CACHE, authorization=bearer("ann"))).text
    assert (await ask(app, "POST", f"{CACHE}/purge?all=1", authorization=bearer("ann"))).status == 403
    assert (await ask(app, "POST", f"{CACHE}/purge?tenant=ann", authorization=bearer("root"))).json == {"purged": 1}
    assert (await ask(app, "GET", CACHE)).status == 401
