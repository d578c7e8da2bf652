"""Distributed checkpoints: from any number of processes to one directory, and back."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.convert.sources import assert_same_bits, tensors_of
from tests.model.small import small_model
from wuneng.convert import Request, convert
from wuneng.convert.distributed import DcpTensors
from wuneng.errors import InputError, ModelError

#: Two processes with half of every matrix each, as fully sharded training leaves it.
SHARDED = """
import os, sys
import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, folder, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
tensors = load_file(f"{folder}/model.safetensors")
state = {f"_orig_mod.{n}": distribute_tensor(t, mesh, [Shard(0)]) for n, t in tensors.items()}
moments = {n: distribute_tensor(torch.ones_like(t), mesh, [Shard(0)]) for n, t in tensors.items()}
dcp.save({"model": state, "optimizer": {"exp_avg": moments}, "step": 7}, checkpoint_id=out)
dist.destroy_process_group()
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    small_model("gqa-qk-norm-bias").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_round_trip_bit_for_bit(model: Path, tmp_path: Path) -> None:
    convert(Request(str(model), tmp_path / "dcp", to="dcp"))
    record = json.loads((tmp_path / "dcp" / "convert.json").read_text())
    assert record["verified_on"] == "the bits of every tensor"
    outcome = convert(Request(str(tmp_path / "dcp"), tmp_path / "back"))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    assert_same_bits(tensors_of(model), tensors_of(tmp_path / "back"))
    convert(Request(str(tmp_path / "back"), tmp_path / "again", to="dcp"))
    first, second = DcpTensors(tmp_path / "dcp"), DcpTensors(tmp_path / "again")
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.read(name), second.read(name)) for name in first.tensors)


def test_a_run_sharded_over_two_processes(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "step-7"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(rank), str(model), str(out)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert len(list(out.glob("*.distcp"))) == 2
    with pytest.raises(ModelError, match=r"no config\.json in it or beside it"):
        convert(Request(str(out), tmp_path / "back"))
    (tmp_path / "config.json").write_bytes((model / "config.json").read_bytes())
    outcome = convert(Request(str(out), tmp_path / "back"))
    assert_same_bits(tensors_of(model), tensors_of(tmp_path / "back"))
    dropped = outcome.record["tensors"]["dropped"]
    assert dropped.keys() == {"optimizer.*", "step.*"}
    assert f"{len(tensors_of(model))} entries" in dropped["optimizer.*"]


def _rewrite(directory: Path, change: Any) -> None:
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    change(metadata)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))


class Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_broken_and_hostile_checkpoints(model: Path, tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        convert(Request(str(model), tmp_path / name, to="dcp", verify=False))
        # As a run leaves it: with checksums nothing below would be looked at.
        (tmp_path / name / "checksums.json").unlink()
        return tmp_path / name

    def refused(place: Path, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            convert(Request(str(place), tmp_path / "out", verify=False))
        assert not (tmp_path / "out").exists()

    bomb = fresh("bomb")
    (bomb / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    refused(bomb, r"it asks for posix\.mkdir; such a file is never opened")
    assert not (tmp_path / "exploded").exists()
    torn = fresh("torn")
    (torn / ".metadata").write_bytes((torn / ".metadata").read_bytes()[:200])
    refused(torn, "not the metadata of a checkpoint")
    lost = fresh("lost")
    next(lost.glob("*.distcp")).unlink()
    refused(lost, r"cannot read model\.")
    short = fresh("short")
    shard = next(short.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:3000])
    refused(short, r"cannot read model\.")
    outside = fresh("outside")
    _rewrite(
        outside,
        lambda m: [setattr(i, "relative_path", "../lost/x") for i in m.storage_data.values()],
    )
    refused(outside, "refers to a file outside the checkpoint")
    other = tmp_path / "other"
    dcp.save({"weights": torch.ones(3)}, checkpoint_id=other, no_dist=True)
    (other / "config.json").write_bytes((model / "config.json").read_bytes())
    refused(other, "expected the checkpoint of a WuNeng")
    with pytest.raises(InputError, match="--dtype does not apply"):
        convert(Request(str(model), tmp_path / "out", to="dcp", dtype="bf16"))


def _claims(directory: Path, change: Any) -> None:
    """Metadata as the run would have written it, changed, without checksums."""
    (directory / "checksums.json").unlink(missing_ok=True)
    _rewrite(directory, change)


def _first(metadata: Any) -> Any:
    return metadata.state_dict_metadata[next(iter(metadata.state_dict_metadata))]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(_first(m), "size", torch.Size([1 << 60, 1 << 30])), "more than the"),
        (lambda m: delattr(_first(m), "size"), "metadata: not usable metadata: .* no attribute"),
        (lambda m: setattr(_first(m), "size", "wide"), "no shape, type and pieces of a tensor"),
        (lambda m: setattr(_first(m), "chunks", None), "no shape, type and pieces of a tensor"),
        (lambda m: setattr(_first(m).properties, "dtype", 3), "no shape, type and pieces"),
        (lambda m: m.state_dict_metadata.update({5: 5}), "expected names of tensors, got 5"),
        (lambda m: setattr(m, "state_dict_metadata", [1]), "not the metadata of a checkpoint"),
        (lambda m: setattr(m, "storage_data", 7), "not the metadata of a checkpoint"),
        (lambda m: setattr(m, "storage_meta", "x"), "not the metadata of a checkpoint"),
    ],
)
def test_metadata_of_wrong_types(model: Path, tmp_path: Path, change: Any, message: str) -> None:
    place = tmp_path / "dcp"
    convert(Request(str(model), place, to="dcp", verify=False))
    _claims(place, change)
    with pytest.raises(ModelError, match=message):
        DcpTensors(place)


def test_metadata_that_claims_memory(tmp_path: Path) -> None:
    """A few bytes of pickle that would have the C unpickler take gigabytes."""
    (tmp_path / ".metadata").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")
    with pytest.raises(ModelError, match="not the metadata of a checkpoint"):
        DcpTensors(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b"x.")
    with pytest.raises(ModelError, match="not the metadata of a checkpoint"):
        DcpTensors(tmp_path)
