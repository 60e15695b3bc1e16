"""Where settings come from, which source counts, and what is said about each fault: where it stands, what was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from velollm.config import Settings, find_config, load_settings, options
from velollm.errors import ConfigError

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "velollm.toml"
        path.write_text(text)
        return path

    return write


def load(
    flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> Settings:
    return load_settings(flags, environ=environ or {"HOME": "/nowhere"}, config=config, folder=Path("/nowhere"))


def fault(
    flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, config: Path | None = None
) -> str:
    with pytest.raises(ConfigError) as raised:
        load(flags, environ, config)
    return raised.value.message


def test_defaults() -> None:
    assert load() == Settings()
    assert load().server.host == "127.0.0.1"
    assert load().server.port == 8000
    assert load().server.max_body == 16 << 20


def test_a_flag_counts_more_than_a_variable_and_that_more_than_the_file(write: Write) -> None:
    config = write('[server]\nport = 1\nhost = "127.0.0.2"\nlog_level = "debug"\n')
    environ = {"VELOLLM_PORT": "2", "VELOLLM_HOST": "127.0.0.3"}
    server = load({"server.port": "3"}, environ, config).server
    assert (server.port, server.host, server.log_level) == (3, "127.0.0.3", "debug")


def test_both_spellings_of_a_variable() -> None:
    assert load(environ={"VELOLLM_SERVER__MAX_BODY": "1MiB"}).server.max_body == 1 << 20
    assert load(environ={"VELOLLM_MAX_BODY": "2MB"}).server.max_body == 2_000_000


def test_an_empty_variable_is_none() -> None:
    assert load(environ={"VELOLLM_PORT": ""}).server.port == 8000


@pytest.mark.parametrize("option", options(), ids=lambda option: option.flag)
def test_every_option_is_a_flag_two_variables_and_a_key(option: Any, write: Write) -> None:
    sample, value = SAMPLES.get(option.dest) or _sample(option)
    from_flag = load({option.dest: [sample] if option.many else sample})
    assert _get(from_flag, option) == value
    for name in option.variables:
        assert _get(load(environ={name: sample}), option) == value
    toml = f'["{sample}"]' if option.many else f'"{sample}"'
    if option.section:
        assert _get(load(config=write(f"[{option.section}]\n{option.key} = {toml}\n")), option) == value


# What a text means, where it cannot be told from the default.
SAMPLES: dict[str, tuple[str, Any]] = {
    "cache.embedder": ("backend:embed", "backend:embed"),
    "cache.store": ("sqlite:answers.db", "sqlite:answers.db"),
    "server.keys": ("/keys.toml", "/keys.toml"),
    "engine.ctx": ("4096", 4096),
    "engine.device": ("1", 1),
    "engine.threads": ("3", 3),
    "engine.parallel": ("8", 8),
    "engine.blocks": ("512", 512),
    "engine.batch": ("128", 128),
}


def _sample(option: Any) -> tuple[str, Any]:
    """A text that is not the default, and its value."""
    if option.choices:
        word = option.choices[-1]
        return word, {"on": True, "off": False}.get(word, word) if isinstance(option.default, bool) else word
    if option.many:
        return "one", ("one",)
    if option.metavar == "SIZE":
        return "3KiB", 3072
    if option.metavar == "SECONDS":
        return "1m", 60.0
    if isinstance(option.default, bool | int | float):
        return "7", type(option.default)(7)
    return "word", "word"


def _get(settings: Settings, option: Any) -> Any:
    if option.key == "backends":
        return tuple(one.url for one in settings.backends)
    return getattr(getattr(settings, option.section), option.key)


# ---- backends --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("http://gpu:11434", None, "http://gpu:11434"),
        ("fast=http://gpu:11434", "fast", "http://gpu:11434"),
        ("a-b_c.1=ollama://x", "a-b_c.1", "ollama://x"),
        ("http://gpu/v1?key=a", None, "http://gpu/v1?key=a"),
        ("/models/a=b.gguf", None, "/models/a=b.gguf"),
    ],
)
def test_backends_by_flag(text: str, name: str | None, url: str) -> None:
    (backend,) = load({"backends": [text]}).backends
    assert (backend.name, backend.url) == (name, url)


def test_backends_by_variable() -> None:
    settings = load(environ={"VELOLLM_BACKEND": "http://one, two=http://two"})
    assert [(one.name, one.url) for one in settings.backends] == [(None, "http://one"), ("two", "http://two")]


def test_backends_by_file(write: Write) -> None:
    config = write(
        """
        [[backends]]
        name = "gpu"
        url = "http://gpu:8000/v1"
        kind = "vllm"
        models = ["qwen3"]
        aliases = { "gpt-4o" = "qwen3" }
        ttft_timeout = "2m"
        max_response = "1MiB"
        headers = { "x-tenant" = "a" }
        [[backends]]
        url = "ollama://localhost"
        """
    )
    gpu, other = load(config=config).backends
    assert (gpu.name, gpu.kind, gpu.models, gpu.ttft_timeout, gpu.max_response) == (
        "gpu", "vllm", ("qwen3",), 120.0, 1 << 20,
    )  # fmt: skip
    assert gpu.aliases == {"gpt-4o": "qwen3"}
    assert gpu.headers == {"x-tenant": "a"}
    assert other.connect_timeout is None


def test_models_by_file(write: Write) -> None:
    config = write('[models."qwen3:8b"]\nnum_ctx = 8192\naliases = ["gpt-4o"]\n')
    model = load(config=config).models["qwen3:8b"]
    assert (model.num_ctx, model.aliases) == (8192, ("gpt-4o",))


# ---- which file ------------------------------------------------------------------------------------------------------


def test_the_file_is_looked_for_here_then_in_the_users_folder(tmp_path: Path) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    (home / ".config" / "velollm").mkdir(parents=True)
    here.mkdir()
    environ = {"HOME": str(home)}
    assert find_config(None, environ, here) is None
    users = home / ".config" / "velollm" / "velollm.toml"
    users.touch()
    assert find_config(None, environ, here) == users
    (here / "velollm.toml").touch()
    assert find_config(None, environ, here) == here / "velollm.toml"
    assert find_config(None, {**environ, "VELOLLM_CONFIG": "/other.toml"}, here) == Path("/other.toml")
    assert find_config(Path("/named.toml"), {**environ, "VELOLLM_CONFIG": "/other.toml"}, here) == Path("/named.toml")


def test_paths_in_a_file_are_relative_to_it(write: Write) -> None:
    config = write('[server]\nkeys = "keys.toml"\n')
    assert load(config=config).server.keys == str(config.parent / "keys.toml")


# ---- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[server]\nhost = "x"\nprot = 1\n', 3, ["[server]", "prot is unknown", "did you mean port?"]),
        ("[server]\nport = 70000\n", 2, ["server.port must be between 0 and 65535, not 70000"]),
        ('[server]\nport = "many"\n', 2, ["server.port must be a whole number, not 'many'"]),
        ("[server]\nport = 1.5\n", 2, ["server.port must be a whole number"]),
        ("[server]\nport = true\n", 2, ["server.port must be a whole number"]),
        ('[server]\nlog_level = "loud"\n', 2, ["must be one of debug, info, warning, error, not 'loud'"]),
        ('[server]\nmax_body = "16 apples"\n', 2, ["server.max_body must be a size like 16MiB"]),
        ('[server]\ndrain_timeout = "soon"\n', 2, ["server.drain_timeout must be a duration"]),
        ('[server]\nallowed_hosts = [1]\n', 2, ["server.allowed_hosts must be a list of texts"]),
        ('[serer]\nport = 1\n', 1, ["the section [serer] is unknown", "did you mean server?"]),
        ("\n\nserver = 3\n", 3, ["server must be a table"]),
        ("[defaults]\nidle_timeout = 0\n", 2, ["defaults.idle_timeout must be above 0"]),
        ('[[backends]]\nurl = "a"\n\n[[backends]]\nname = "b"\n', 4, ["url is missing"]),
        ('[[backends]]\nurl = "a"\nkind = "magic"\n', 3, ["backends.kind must be one of ollama, llamacpp"]),
        ('[[backends]]\nurl = "a"\nmodel = "b"\n', 3, ["model is unknown", "did you mean models?"]),
        ('[backends]\nurl = "a"\n', 1, ["must be an array of tables, each headed [[backends]]"]),
        ('[models."a.b"]\nnum_ctx = -1\n', 2, ["num_ctx must be above 0"]),
        ('[observability]\nmetrics = "perhaps"\n', 2, ["must be on or off"]),
    ],
)  # fmt: skip
def test_every_fault_in_a_file_is_told_with_its_line(write: Write, text: str, line: int, words: list[str]) -> None:
    config = write(text)
    message = fault(config=config)
    assert message.startswith(f"{config}, line {line}"), message
    for part in words:
        assert part in message


def test_all_faults_are_told_at_once(write: Write) -> None:
    message = fault(config=write('[server]\nport = "x"\nlog_level = "x"\n[engine]\nctx = 0\n'))
    assert [line.partition(", line ")[2].partition(",")[0] for line in message.splitlines()] == ["2", "3", "5"]


def test_a_file_that_is_no_toml_is_told_with_its_line(write: Write) -> None:
    config = write("[server]\nport = \n")
    assert fault(config=config).startswith(f"{config}: ")
    assert "line 2" in fault(config=config)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in fault(config=tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in fault(config=tmp_path / "bytes.toml")


def test_faults_in_flags_and_variables_name_them() -> None:
    assert fault({"server.port": "x"}) == "--port: server.port must be a whole number, not 'x'"
    assert fault(environ={"VELOLLM_PORT": "x"}).startswith("VELOLLM_PORT: ")
    assert fault(environ={"VELOLLM_SERVER__PORT": "x"}).startswith("VELOLLM_SERVER__PORT: ")
    assert fault({"backends": ["name="]}).startswith("--backend: ")


def test_unknown_variables_are_told_with_the_nearest() -> None:
    assert fault(environ={"VELOLLM_PROT": "1"}) == "VELOLLM_PROT: there is no such setting; did you mean VELOLLM_PORT?"


@pytest.mark.parametrize(
    "environ",
    [
        {"VELOLLM_MODELS_DIR": "/models"},
        {"VELOLLM_EMBEDDER_DIR": "/embedders"},
        {"VELOLLM_TEST_OLLAMA": "/bin/ollama"},
        {"VELOLLM_PORT": "tcp://10.0.0.1:8000"},  # Kubernetes, beside a service called velollm
        {"VELOLLM_SERVICE_HOST": "10.0.0.1"},
        {"VELOLLM_PORT_8000_TCP": "tcp://10.0.0.1:8000"},
    ],
)
def test_variables_of_others_are_left_alone(environ: dict[str, str]) -> None:
    assert load(environ=environ) == Settings()


def test_the_variable_that_holds_a_backends_key_is_no_setting(write: Write) -> None:
    config = write('[[backends]]\nurl = "http://x"\napi_key_env = "VELOLLM_SECRET"\n')
    assert load(environ={"VELOLLM_SECRET": "s"}, config=config).backends[0].api_key_env == "VELOLLM_SECRET"
