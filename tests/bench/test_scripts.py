"""Every benchmark that benchmarks/*.sh runs is one that the commands still take."""

from __future__ import annotations

import shlex
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


def test_the_gpus_script(repository: Path) -> None:
    lines = commands(repository / "benchmarks" / "gpu.sh")
    assert len(lines) >= 5
    for line in lines:
        given = vars(_parser().parse_args([*line, "--device", "cuda", "--dtype", "bf16"]))
        given = {name: x for name, x in given.items() if name not in ("out", "verbose")}
        assert make_request(**given).device == "cuda"


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
