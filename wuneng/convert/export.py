"""WuNeng to transformers: a stock model where nothing is lost, code that travels where it would be.

A model without state heads, or whose branch is exactly zero, computes what a Llama computes, or a
model of another family: plain transformers loads it. Any other takes its modelling code along.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wuneng.convert import answering
from wuneng.convert.architectures import stock_config
from wuneng.convert.comparison import Check, compare
from wuneng.convert.conversion import Conversion, same_function
from wuneng.convert.families import family_of
from wuneng.convert.fused import JoinedTensors, joined_shapes
from wuneng.convert.graft import is_grafted_name
from wuneng.convert.plan import kept_routes, main_dtype, make_plan, model_shapes
from wuneng.convert.probe import Answers, Probe
from wuneng.convert.remote_code import AUTO_MAP, foreign_kind, write_modelling_code
from wuneng.convert.resave import read_config, same_tensors
from wuneng.convert.source import Located, open_tensors
from wuneng.convert.stacked import ExpertsApart, apart_shapes
from wuneng.convert.tensor_files import TensorSource
from wuneng.convert.verify import answers_of
from wuneng.errors import InputError, ModelError, RunError
from wuneng.model import WuNengConfig
from wuneng.ops import using
from wuneng.records.scratch import scratch_directory

__all__ = ["to_transformers"]

#: By which both sides of the check compute: the directory's code travels without the C kernels.
_ALONE_BACKEND = "chunked"
#: What a state branch adds goes through these; all zero, it adds nothing.
_OUTLETS = ("cross_head.branch_proj.weight", "cross_head.alpha")


def to_transformers(
    located: Located, *, dtype: torch.dtype | None, stock: bool | None
) -> Conversion:
    """A WuNeng model for people who do not have this package.

    Args:
        stock: True insists on a stock architecture, False on remote code, None decides.

    Raises:
        InputError: ``stock`` is True and the state branch says something.
        ModelError: no stock architecture has the model's wiring; broken files.
    """
    source = open_tensors(located)
    config = read_config(located, source)
    if foreign := foreign_kind(config):
        raise InputError(
            f"{located.label}: {foreign} is not part of wuneng, whose code alone an export carries"
        )
    if stock is None:
        stock = _speaking(source) is None and _has_stock(config)
    return (
        _stock(located, source, config, dtype) if stock else _remote(located, source, config, dtype)
    )


def _stock(
    located: Located, source: TensorSource, config: WuNengConfig, dtype: torch.dtype | None
) -> Conversion:
    speaking = _speaking(source)
    if speaking is not None:
        raise InputError(
            f"{located.label}: {speaking} is not zero, so the state branch changes the output and "
            "no stock model computes the same; leave out --stock to export with modelling code"
        )
    target = dtype or main_dtype(source)
    config.dtype = target
    plain = stock_config(config)
    config.num_state_heads, config.cross_head = 0, "none"
    config.state_layers = config.layers = None
    wanted = model_shapes(config)
    family = family_of(plain.model_type)
    if family is not None and family.fused:
        source, wanted = JoinedTensors(source, family.fused), joined_shapes(wanted, family.fused)
    if family is not None and family.has_experts:
        source, wanted = ExpertsApart(source), apart_shapes(wanted)
    routes, dropped = kept_routes(source, wanted, silent=is_grafted_name)
    plan = make_plan(source, routes, dropped, dtype=dtype, wanted=wanted)
    return same_function(located, f"wuneng to stock {plain.model_type}", plain, plan, target)


def _remote(
    located: Located, source: TensorSource, config: WuNengConfig, dtype: torch.dtype | None
) -> Conversion:
    target = dtype or main_dtype(source)
    config.auto_map = dict(AUTO_MAP)
    return same_function(
        located,
        "wuneng to transformers with modelling code",
        config,
        same_tensors(source, config, dtype),
        target,
        counted=config,
        verify=lambda written, probe: _check_alone(located.path, written, probe, target),
        write=write_modelling_code,
    )


def _speaking(source: TensorSource) -> str | None:
    """An outlet of the state branch that is not zero, or None."""
    for name in source.tensors:
        if name.endswith(_OUTLETS) and bool(source.read(name).any()):
            return name
    return None


def _has_stock(config: WuNengConfig) -> bool:
    try:
        stock_config(config)
    except ModelError:
        return False
    return True


def _check_alone(source: Path, written: Path, probe: Probe, dtype: torch.dtype) -> list[Check]:
    """Compare with the exported directory loaded in a process that cannot import this package."""
    with using(_ALONE_BACKEND):
        expected = answers_of(source, dtype, probe)
    return compare(expected, _answers_alone(written, probe, dtype), dtype)


def _answers_alone(directory: Path, probe: Probe, dtype: torch.dtype) -> Answers:
    ids, mask = probe.padded
    inputs = {"rows": probe.rows, "ids": ids, "mask": mask, "prefill": torch.tensor(probe.prefill)}
    with scratch_directory(".wuneng-export-") as place:
        save_file(inputs, place / "inputs.safetensors")
        # The directory's final name: transformers names the module after it, a dot would break it.
        (place / "exported").symlink_to(directory.resolve(), target_is_directory=True)
        environment = os.environ | {
            "HF_MODULES_CACHE": str(place / "modules"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "WUNENG_BACKEND": _ALONE_BACKEND,
        }
        environment.pop("PYTHONPATH", None)
        script = inspect.getsource(answering) + _ALONE
        command = [sys.executable, "-c", script, str(place), str(dtype).removeprefix("torch.")]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=place, check=False
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RunError(f"the exported directory does not load by itself: {last[:300]}")
        return load_file(place / "answers.safetensors")


#: Runs where the package cannot be imported, as at somebody else's place.
_ALONE = """
import sys
from pathlib import Path
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("wuneng", "wuneng_cli"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
place = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(
    place / "exported", trust_remote_code=True, dtype=getattr(torch, sys.argv[2])
).eval()
given = load_file(place / "inputs.safetensors")
rows, ids, mask, start = (given[name] for name in ("rows", "ids", "mask", "prefill"))
save_file(answers_to(model, rows, ids, mask, int(start)), place / "answers.safetensors")
"""
