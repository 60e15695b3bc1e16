"""`velollm speculative` against an engine whose drafts pay, cost, or do not start."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from support.drafting_engine import DRAFTING
from support.machines import RecordedHost
from tiny_gguf import write_tiny_gguf

from velollm.cli import main
from velollm.commands import speculative
from velollm.contrib.llamacpp.child import _speculate
from velollm.hardware import read_machine
from velollm.hardware.host import LocalHost
from velollm.models.gguf import GGUF, LongArray, Tensor, read_model
from velollm.speculation.lookup import NgramMod, NgramSimple
from velollm.speculation.methods import Draft, fits, heads, methods, usable

SPEC = (
    "--spec-type T  types (env: LLAMA_ARG_SPEC_TYPE)|--spec-ngram-simple-size-n N  n|--spec-ngram-simple-size-m N  m|"
)
SPEC += "--spec-ngram-mod-n-match N  n|--spec-ngram-mod-n-min N  n|--spec-ngram-mod-n-max N  n|"
SPEC += "--spec-draft-model F  draft|--spec-draft-n-max N  n"


def model(**metadata: Any) -> GGUF:
    base = {
        "general.architecture": "qwen3", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.tokens": LongArray(1000),
    }  # fmt: skip
    tensors = metadata.pop("tensors", ())
    parameters = metadata.pop("parameters", 1000)
    return GGUF(metadata={**base, **metadata}, tensor_count=1, parameters=parameters, size=1, tensors=tensors)


# ---- what there is ---------------------------------------------------------------------------------------------------


def test_heads_are_named() -> None:
    layer = Tensor(name="blk.28.nextn.eh_proj.weight", dimensions=(1,), kind=0, size=4)
    whole = model(**{"qwen3.nextn_predict_layers": 1, "qwen3.block_count": 29, "tensors": (layer,)})
    assert [(head.kind, head.count) for head in heads(whole)] == [("draft-mtp", 1)]
    assert any(method.kind == "draft-mtp" for method in methods(whole))
    stripped = model(**{"qwen3.nextn_predict_layers": 1, "qwen3.block_count": 29})
    assert heads(stripped) == []
    assert [head.kind for head in heads(model(**{"general.architecture": "eagle3"}))] == ["draft-eagle3"]
    assert not any(method.kind.startswith("draft") for method in methods(model()))


def test_drafts_share_the_vocabulary() -> None:
    big = model(parameters=8000)
    assert fits(big, model())
    assert fits(big, model(**{"tokenizer.ggml.tokens": LongArray(1100)}))
    for other in (
        {"tokenizer.ggml.tokens": LongArray(1200)},
        {"tokenizer.ggml.pre": "llama3"},
        {"tokenizer.ggml.eos_token_id": 3},
        {"parameters": 9000},
        {"general.architecture": "eagle3"},
    ):
        assert not fits(big, model(**other)), other


def test_flags_say_what_is_replayed() -> None:
    found = methods(model(), [Draft(path=Path("d.gguf"), share=0.2)])
    for method in found:
        lookup = method.lookup()
        if method.kind == "ngram-simple":
            assert isinstance(lookup, NgramSimple)
            assert str(lookup.size) == method.flags["--spec-ngram-simple-size-n"]
            assert lookup.most == method.length
        elif method.kind == "ngram-mod":
            assert isinstance(lookup, NgramMod)
            assert str(lookup.least) == method.flags["--spec-ngram-mod-n-min"]
        else:
            assert lookup is None
            assert method.flags["--spec-draft-model"] == "d.gguf"
    assert usable(found, {"--spec-type"}) == []
    assert usable(found, ()) == found


def test_the_wheel_is_told_the_same() -> None:
    library = pytest.importorskip("xllamacpp")
    flags: dict[str, dict[str, str]] = {}
    for method in methods(model(), [Draft(path=Path("d.gguf"), share=0.2)]):
        wanted = {flag.removeprefix("--spec-"): value for flag, value in method.flags.items()}
        parameters = library.CommonParams()
        _speculate(library, parameters.speculative, wanted)
        kind = parameters.speculative.types[0].name.removeprefix("COMMON_SPECULATIVE_TYPE_")
        assert kind.lower().replace("_", "-") == method.kind
        flags[method.kind] = wanted
        if method.kind == "ngram-simple":
            simple = parameters.speculative.ngram_simple
            assert (str(simple.size_n), str(simple.size_m)) == (
                wanted["ngram-simple-size-n"],
                wanted["ngram-simple-size-m"],
            )
        if method.kind == "draft-simple":
            assert parameters.speculative.draft.mparams.path == "d.gguf"
            assert str(parameters.speculative.draft.n_max) == wanted["draft-n-max"]
    assert flags.keys() == {"ngram-simple", "ngram-mod", "draft-simple"}


# ---- what pays -------------------------------------------------------------------------------------------------------


class Host(LocalHost):
    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home
        self.environ = {"PATH": os.environ["PATH"], "XDG_DATA_HOME": str(home / "data")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(speculative, "LocalHost", lambda: Host(tmp_path))
    machine = read_machine(RecordedHost("container_limits"))
    machine = attrs.evolve(machine, engines=(), installed=(), gpus=())
    monkeypatch.setattr(speculative, "detect", lambda host, **options: machine)
    write_tiny_gguf(tmp_path / "tiny.gguf")
    return tmp_path


def engine(place: Path, spec: str = SPEC) -> str:
    path = place / "llama-server"
    path.write_text(DRAFTING.format(python=sys.executable, spec=spec))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def words(place: Path, *more: str, spec: str = SPEC) -> list[str]:
    (place / "own.txt").write_text("".join(f"say {n} the old song of sea number {n} and rest\n" for n in range(20)))
    common = ["--model", str(place / "tiny.gguf"), "--binary", engine(place, spec), "--rounds", "2"]
    small = ["--num-prompts", "2", "--output-len", "40", "--dataset-path", str(place / "own.txt")]
    return ["speculative", *common, *small, *more]


def test_what_pays_is_recommended(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["best"]["kind"] == "ngram-simple"
    assert facts["flags"]["--spec-type"] == "ngram-simple"
    assert facts["gain"] > 1.5
    assert facts["costs"]["8"] == pytest.approx(10.8 / 10.1, abs=0.01)
    proofs = {proof["method"]["kind"]: proof for proof in facts["proofs"]}
    assert proofs["ngram-simple"]["kept"]
    if "ngram-mod" in proofs:
        assert proofs["ngram-mod"]["words"].startswith("withdrawn: it does not start: ")
        assert "no such drafts, says the engine" in proofs["ngram-mod"]["words"]
        assert not proofs["ngram-mod"]["kept"]


def test_for_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place)) == 0
    out, err = capsys.readouterr()
    assert "use: llama-server -m" in out
    assert "--spec-type ngram-simple" in out
    assert "kept" in out
    assert "round 1 of 2" in err


def test_predictions_alone(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, "--no-verify")) == 0
    out = capsys.readouterr().out
    assert "predictions only" in out
    assert "use:" not in out


def test_what_does_not_pay_is_withdrawn(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = read_model(place / "tiny.gguf")
    big = attrs.evolve(small, parameters=small.parameters * 10)
    monkeypatch.setattr(speculative, "read_model", lambda path: big if path.name == "tiny.gguf" else small)
    monkeypatch.setattr(speculative, "_share", lambda draft, model: 0.1)
    (place / "draft.gguf").write_bytes((place / "tiny.gguf").read_bytes())
    only = "--spec-type T  types|--spec-draft-model F  draft|--spec-draft-n-max N  n"
    assert main(words(place, "--draft", str(place / "draft.gguf"), "--output-len", "20", spec=only)) == 1
    out = capsys.readouterr().out
    assert "no draft pays here: leave it off" in out
    (tried,) = (line for line in out.splitlines() if line.endswith("withdrawn"))
    assert " 50%" in tried


@pytest.mark.parametrize(
    ("more", "status", "complaint"),
    [
        (["--clients", "0"], 2, "must be above 0"),
        (["--dataset-path", "/nowhere"], 1, "/nowhere cannot be read"),
        (["--binary", "/no/llama-server"], 1, "cannot be started"),
        (["--draft", "tiny.gguf"], 1, "cannot draft for"),
    ],
)
def test_what_cannot_be_done(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], status: int,
    complaint: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    assert main(words(place, *more)) == status
    assert complaint in capsys.readouterr().err


def test_an_old_engine(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(place, spec="--draft-max N  n")) == 1
    assert "too old to draft" in capsys.readouterr().err
