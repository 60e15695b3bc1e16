"""From what a model calls a tool to the tool: never onto another operation."""

from __future__ import annotations

import pytest

from velollm.toolcalls.names import NameMap

NAMES = NameMap(
    ["get_weather", "set_volume", "unlock_door", "send_email", "calendar__list_events", "fs.read_file", "deleteUser",
     "search", "add_item", "remove_item", "enable_alarm", "GitHub-create_issue"]
)  # fmt: skip


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("get_weather", "get_weather"),
        ("GetWeather", "get_weather"),
        ("get-weather", "get_weather"),
        ("get weather", "get_weather"),
        ("getweather", "get_weather"),
        ("functions.get_weather", "get_weather"),
        ("functions.get_weather:0", "get_weather"),
        ("tools.get_weather", "get_weather"),
        ("default_api.get_weather", "get_weather"),
        ("to=functions.get_weather", "get_weather"),
        ("get_weather()", "get_weather"),
        ("get_weather<|channel|>commentary", "get_weather"),
        ("get_weather<|constrain|>json", "get_weather"),
        ("`get_weather`", "get_weather"),
        ('"get_weather"', "get_weather"),
        (" get_weather\n", "get_weather"),
        ("get_wether", "get_weather"),
        ("get_weahter", "get_weather"),
        ("get_weathr", "get_weather"),
        ("list_events", "calendar__list_events"),
        ("server.get_weather", "get_weather"),
        ("mcp__server__get_weather", "get_weather"),
        ("read_file", "fs.read_file"),
        ("delete_user", "deleteUser"),
        ("send_emial", "send_email"),
        ("github_create_issue", "GitHub-create_issue"),
        # another operation, or none at all
        ("set_weather", None),
        ("get_volume", None),
        ("lock_door", None),
        ("delete_item", None),
        ("disable_alarm", None),
        ("remove_user", None),
        ("create_user", None),
        ("list_event_types", None),
        ("weather", None),
        ("get", None),
        ("sea", None),
        ("research", None),
        ("add_items_to_cart", None),
        ("", None),
        ("   ", None),
        ("x" * 400, None),
    ],
)
def test_names(written: str, meant: str | None) -> None:
    found = NAMES.find(written)
    assert (found[0] if found else None) == meant


def test_what_two_tools_could_be_is_neither() -> None:
    names = NameMap(["a.read", "b.read", "read_a_file", "readAFile"])
    assert names.find("read") is None
    assert names.find("read-a-file") is None
    assert names.find("read_a_file") == ("read_a_file", "")
