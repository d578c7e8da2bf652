"""Devices, precisions, and what a run records about its machine."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch

from wuneng import device as device_module
from wuneng.device import autocast_dtype, environment, pick_device
from wuneng.errors import InputError

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert pick_device() == CPU
    assert pick_device("cpu") == CPU
    with pytest.raises(InputError, match=r"device cuda: .* sees no CUDA device here"):
        pick_device("cuda")
    with pytest.raises(InputError, match="sees no Apple GPU"):
        pick_device("mps")


@pytest.mark.usefixtures("two_gpus")
def test_with_gpus() -> None:
    assert pick_device() == CUDA
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="this machine has 2, the last is cuda:1"):
        pick_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:", "cuda:x", ""])
def test_unknown_devices(name: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda, cuda:N or mps"):
        pick_device(name)


def test_a_near_miss_is_recognised() -> None:
    with pytest.raises(InputError, match="Did you mean 'cuda'"):
        pick_device("cuba")


def test_precisions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("fp32", CPU) is None
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    assert autocast_dtype("fp16", CUDA) == torch.float16
    for supported, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda answer=supported: answer)
        assert autocast_dtype("auto", CUDA) == expected
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        autocast_dtype("fp16", CPU)
    with pytest.raises(InputError, match="Did you mean 'bf16'"):
        autocast_dtype("bf61", CPU)


def test_the_environment_is_complete_and_json() -> None:
    record = environment(["wuneng", "train", "x.yaml"])
    assert json.loads(json.dumps(record)) == record
    assert record["schema"] == 1
    assert record["command_line"] == ["wuneng", "train", "x.yaml"]
    assert record["packages"]["torch"] == torch.__version__
    assert record["cores"] >= 1


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert environment([])["git_commit"] is None


def test_changed_sources_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"ls-files": "device.py", "rev-parse": "abc", "status": " M wuneng/device.py"}
    monkeypatch.setattr(device_module, "_git", lambda _, command, *__: answers[command])
    assert environment([])["git_commit"] == "abc-dirty"
    answers["status"] = ""
    assert environment([])["git_commit"] == "abc"
