"""Every benchmark that benchmarks/*.sh runs is one that the commands still take."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
from torch import Tensor

from wuneng.bench.__main__ import _parser
from wuneng.bench.request import make_request
from wuneng_cli.main import app

OPTIONS = ("seq_len", "what", "model", "preset", "against", "batch", "device", "dtype", "threads")


def commands(script: Path) -> list[list[str]]:
    """The arguments of each line that begins with ``bench``, its continuations joined."""
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("bench ")]


def gpu_script(
    repository: Path,
    place: Path,
    *options: str,
    fails: str = "never",
    lacks: str = "tilelang",
    slow: str = "never",
) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """benchmarks/gpu.sh with a python3 that notes what it is asked for; and what that was. What is
    ``slow`` takes all the time that it is given."""
    log, programs = place / "asked", place / "bin"
    log.unlink(missing_ok=True)
    programs.mkdir(exist_ok=True)
    program(
        programs / "python3",
        # in one write: several are asked at once
        f'line=$(printf "%s\\x1f" "$@")\nprintf "%s\\n" "$line" >> {log}\n'
        f'[[ "$*" == *{lacks}* || "$*" == *{fails}* ]] && exit 1\nexit 0',
    )
    program(
        programs / "timeout",
        f'[ "$1" = -k ] && shift 2\nlimit="$1"\nshift\n'
        f'if [[ "$*" == *{slow}* ]]; then sleep "$limit"; exit 124; fi\nexec "$@"',
    )
    command = ["bash", str(repository / "benchmarks" / "gpu.sh"), *options, str(place / "records")]
    path = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    ended = subprocess.run(
        command, env={**os.environ, **path}, capture_output=True, text=True, timeout=120
    )
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return ended, [line.split("\x1f")[:-1] for line in lines]


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


def measured_into(asked: list[list[str]]) -> list[str]:
    """The records that were asked for, in order."""
    return [Path(x[x.index("--out") + 1]).name for x in asked if "--out" in x]


RECORDS = [
    *("gpu-launches.json", "gpu-ops", "gpu-train-captured", "gpu-decode", "gpu-train"),
    *("gpu-train-torch", "gpu-few-heads", "gpu-prefill", "gpu-head-loss.json"),
    "gpu-repeated-tokens.json",
]


def test_the_gpus_script(repository: Path, tmp_path: Path) -> None:
    ended, asked = gpu_script(repository, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert measured_into(asked) == RECORDS
    assert any("pytest" in line for line in asked)
    benches = [line[2:] for line in asked if line[:2] == ["-m", "wuneng.bench"]]
    assert len(benches) >= 8
    for line in benches:
        given = vars(_parser().parse_args(line))
        given = {name: x for name, x in given.items() if name not in ("out", "verbose")}
        assert make_request(**given).device == "cuda"


def test_the_gpus_script_goes_on_from_a_step(repository: Path, tmp_path: Path) -> None:
    ended, asked = gpu_script(repository, tmp_path, "--from", "train-torch", "--minutes", "30")
    assert ended.returncode == 0
    assert measured_into(asked) == RECORDS[5:]
    assert not any("pytest" in line for line in asked)


def test_the_gpus_script_names_what_it_has_no_time_for(repository: Path, tmp_path: Path) -> None:
    ended, asked = gpu_script(repository, tmp_path, "--from", "few-heads", "--minutes", "0")
    assert (ended.returncode, measured_into(asked)) == (0, [])
    left = "few-heads prefill head-loss repeated-tokens"
    assert f"left after 0 minutes: {left}. They are measured by" in ended.stdout
    again = ended.stdout.strip().rpartition("bash benchmarks/gpu.sh ")[2]
    assert shlex.split(again) == ["--from", "few-heads", str(tmp_path / "records")]


def test_the_gpus_script_goes_on_after_a_failure(repository: Path, tmp_path: Path) -> None:
    ended, asked = gpu_script(repository, tmp_path, fails="gpu-decode")
    assert ended.returncode == 1
    assert measured_into(asked) == RECORDS
    assert "failed (1)" in ended.stderr
    assert "gpu-decode" in ended.stderr


@pytest.mark.slow
def test_the_gpus_script_stops_what_its_minutes_cut_short(repository: Path, tmp_path: Path) -> None:
    options = ("--from", "few-heads", "--minutes", "1")
    ended, asked = gpu_script(repository, tmp_path, *options, slow="gpu-few-heads")
    assert (ended.returncode, ended.stderr, measured_into(asked)) == (0, "", [])
    assert "left after 1 minutes: few-heads prefill head-loss repeated-tokens." in ended.stdout


def test_the_gpus_script_measures_the_kernels_without_tilelang(
    repository: Path, tmp_path: Path
) -> None:
    ended, asked = gpu_script(repository, tmp_path, "--from", "ops-triton", lacks="nothing")
    assert ended.returncode == 0
    assert measured_into(asked) == ["gpu-ops-triton", *RECORDS[5:]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--from", "decoding"), "no step decoding; the steps are proofs launches ops"),
        (("--minutes", "soon"), "--minutes is a whole number, not soon"),
        (("--quick",), "no such option: --quick (there are --minutes and --from)"),
        (("--from",), "no step"),
        (("--from", "launches ops"), "no step launches ops; the steps are"),
    ],
)
def test_the_gpus_script_refuses(
    repository: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    ended, asked = gpu_script(repository, tmp_path, *options)
    assert (ended.returncode, asked) == (2, [])
    assert ended.stderr.startswith(f"gpu.sh: {said}")


def test_the_cpus_script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    command = typer.main.get_command(app).get_command(None, "bench")  # type: ignore[attr-defined]
    lines = commands(repository / "benchmarks" / "cpu.sh")
    assert len(lines) >= 8
    for line in lines:
        given = command.make_context("bench", ["--device", "cpu", "--threads", "2", "-q", *line])
        make_request(**{name: given.params[name] for name in OPTIONS})
        assert given.params["out"].is_relative_to("benchmarks")


def test_repeated_tokens_are_given_to_the_devices_own_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The C kernels take tensors of a CPU alone: on a GPU the script ended at them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # as the script sets it here
    from benchmarks import repeated_tokens
    from wuneng.ops import native

    monkeypatch.setattr(native, "library", lambda size: True)
    for on_gpu, has_native in ((True, False), (False, True)):
        monkeypatch.setattr(repeated_tokens, "ON_GPU", on_gpu)
        names = [name for name, _ in repeated_tokens.our_operators()]
        assert ("wuneng native" in names) == has_native
        assert "wuneng chunked" in names


def test_a_loss_that_is_wrong_gets_no_time() -> None:
    """Of other projects' fused losses as of ours; where they cannot run, that is told."""
    from benchmarks import head_loss

    cpu = torch.device("cpu")
    found, said = head_loss.ways(cpu)
    assert found.keys() == {"ours", "whole"}
    assert said == dict.fromkeys(head_loss.PEERS, "needs a GPU")

    def half(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return found["whole"](hidden, weight, labels) * 0.999

    def broken(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        raise ValueError("no such kernel")

    judged = head_loss.checked({**found, "half": half, "broken": broken}, 16, cpu)
    assert {name for name, row in judged.items() if row["right"]} == {"ours", "whole"}
    assert judged["broken"]["note"] == "ValueError: no such kernel"
    rows = head_loss.measured(found, (256, 16, 4096), cpu, seconds=0.1)
    assert rows["ours"]["peak_bytes"] < rows["whole"]["peak_bytes"]
    assert rows["whole"]["of_whole"] == 1
