"""`velollm kernels` on a machine without a GPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from velollm.cli import main
from velollm.gpu.device import look

Capture = pytest.CaptureFixture[str]
needs_nvrtc = pytest.mark.skipif(find_spec("cuda") is None, reason="the extra cuda is not installed")


def test_list(capsys: Capture) -> None:
    assert main(["kernels", "list", "--json", "--only", "paged_decode_*"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"paged_decode_bf16_d128", "paged_decode_fp16_d80"}
    assert all(row["minimum"] == "sm_80" for row in rows)
    assert main(["kernels", "list"]) == 0
    assert "combine_fp32" in capsys.readouterr().out


def test_an_unknown_kernel_is_named(capsys: Capture) -> None:
    assert main(["kernels", "list", "--only", "paged_decoder*"]) == 2
    assert "there is no kernel paged_decoder*" in capsys.readouterr().err


@needs_nvrtc
def test_compile_twice(tmp_path: Path, capsys: Capture) -> None:
    """The second time it comes from disk, with the same figures; a damaged entry is compiled again."""
    command = ["kernels", "compile", "--arch", "sm_90", "--only", "combine_fp16", "--json", "--cache", str(tmp_path)]
    assert main(command) == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert (first["name"], first["arch"], first["spill_bytes"], first["cached"]) == ("combine_fp16", "sm_90", 0, False)
    assert 16 < first["registers"] < 128
    assert main(command) == 0
    (second,) = json.loads(capsys.readouterr().out)
    assert second == {**first, "cached": True}
    next(tmp_path.glob("*.json")).write_text("{")
    assert main(command) == 0
    (third,) = json.loads(capsys.readouterr().out)
    assert third == first


@needs_nvrtc
def test_several_processes_compile_the_same(tmp_path: Path, capsys: Capture) -> None:
    command = ["kernels", "compile", "--arch", "sm_75", "--arch", "sm_80", "--arch", "sm_90", "--only", "embedding_*"]
    rows = []
    for jobs in ("2", "1"):
        assert main([*command, "--json", "--jobs", jobs, "--cache", str(tmp_path)]) == 0
        rows.append(json.loads(capsys.readouterr().out))
    assert len(rows[0]) == 9
    assert [{**row, "cached": True} for row in rows[0]] == rows[1]
    assert not any(row["cached"] for row in rows[0])


@pytest.mark.skipif(not look().missing, reason="there is a GPU")
def test_check_says_what_is_missing(capsys: Capture) -> None:
    assert main(["kernels", "check", "--json"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["gpu"] is None
    assert "there is no GPU to check on" in err
    assert json.loads(out)["missing"] in err


@needs_nvrtc
def test_compiling_for_an_architecture_that_a_kernel_cannot_run_on_leaves_it_out(
    tmp_path: Path, capsys: Capture
) -> None:
    command = ["kernels", "compile", "--arch", "sm_75", "--only", "paged_decode_*", "--json", "--cache", str(tmp_path)]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == []
