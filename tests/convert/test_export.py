"""WuNeng to transformers: stock models bit for bit, directories that need no package of ours."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.convert.rwkv_files import random_x070
from tests.convert.sources import assert_same_bits, save_source, tensors_of
from tests.model.ropes import SCALED
from tests.model.small import small_model
from wuneng.convert import GraftSettings, Request, VerificationError, convert
from wuneng.convert.remote_code import modelling_files
from wuneng.errors import InputError, ModelError, RunError

#: Every kind of rotary positions that transformers knows and a checkpoint may state.
ROPE_KINDS: dict[str, dict[str, Any]] = {
    "base": {"rope_type": "default", "rope_theta": 123_456.0},
    **SCALED,
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "factor": 4.0,
        "short_factor": [1.0 + n / 10 for n in range(6)],
        "long_factor": [2.0 + n for n in range(6)],
        "original_max_position_embeddings": 32,
    },
}

ROUND_TRIPS: dict[str, dict[str, Any]] = {
    "llama": {"kind": "llama", "attention_bias": True, "mlp_bias": True, "max_shard_size": "20KB"},
    "llama-tied-bf16": {"kind": "llama", "tie_word_embeddings": True, "dtype": torch.bfloat16},
    "qwen2": {
        "kind": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 1,
    },
    "qwen3": {"kind": "qwen3", "head_dim": 20},
    "mistral": {"kind": "mistral", "sliding_window": 7, "head_dim": 10},
    "mistral-no-window": {"kind": "mistral", "sliding_window": None},
    **{
        f"{kind}-rope-{name}": {"kind": kind, "head_dim": 12, "rope_parameters": rope}
        for name, rope in ROPE_KINDS.items()
        for kind in ("llama", "qwen3")
    },
}
#: What must come back in the configuration, beside the tensors.
FIELDS = (
    "model_type",
    "architectures",
    "vocab_size",
    "hidden_size",
    "num_key_value_heads",
    "rope_parameters",
    "tie_word_embeddings",
    "layer_types",
    "bos_token_id",
    "eos_token_id",
    "dtype",
)


def assert_same_logits(*directories: Path) -> None:
    """Within and beyond the length that scaled rotary positions were made for."""
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in directories]
    for length in (9, 60):
        ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(length))
        with torch.no_grad():
            first, *others = (model(ids).logits for model in models)
        assert all(torch.equal(first, logits) for logits in others), length


def test_every_kind_of_rotary_positions_goes_both_ways() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stated = {rope["rope_type"] for rope in ROPE_KINDS.values()} - {"default"}
    assert stated == {*ROPE_INIT_FUNCTIONS} - {"default", "proportional"}


@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_transformer_to_wuneng_and_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    source = save_source(tmp_path / "source", **ROUND_TRIPS[name])
    convert(Request(str(source), tmp_path / "grafted"))
    outcome = convert(Request(str(tmp_path / "grafted"), tmp_path / "back", to="transformers"))
    assert outcome.record["max_abs_logit_difference"] == 0.0
    assert outcome.record["added_parameters"] == 0
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "back"))
    before, after = (AutoConfig.from_pretrained(p) for p in (source, tmp_path / "back"))
    for field in FIELDS:
        assert getattr(before, field, None) == getattr(after, field, None), field
    assert_same_logits(source, tmp_path / "grafted", tmp_path / "back")
    kind = ROUND_TRIPS[name]["kind"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert type(model).__name__ == f"{kind.capitalize()}ForCausalLM"
    assert sum(len(names) for names in outcome.record["tensors"]["dropped"].values()) > 0


def _save(directory: Path, variant: str, **changes: Any) -> Path:
    small_model(variant, **changes).save_pretrained(directory)
    return directory


#: Runs where neither package can be imported; prints greedy ids.
GENERATE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("wuneng", "wuneng_cli"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model).__module__
ids = torch.tensor([[0, 0, 5, 7, 11], [1, 2, 3, 4, 5]])
mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
out = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False,
                     pad_token_id=0, eos_token_id=None)
print(out.tolist())
if "triton" in sys.argv:  # the kernels travel too: run them in Triton's interpreter
    import copy, os
    with torch.no_grad():
        os.environ["WUNENG_BACKEND"] = "reference"
        reference, exact = model(ids).logits, copy.deepcopy(model).double()(ids).logits
        os.environ["WUNENG_BACKEND"] = "triton"
        # As in tests.precision, which is not here.
        found, lost = ((x - exact).abs().max() for x in (model(ids).logits, reference))
        assert found <= max(8 * lost, 24 * 2.0**-23 * exact.abs().max()), (found, lost)
"""


@pytest.mark.parametrize(("variant", "verify"), [("snapshots", True), ("pure-rwkv7", False)])
def test_exported_directory_generates_without_the_package(
    variant: str, verify: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64} if variant == "snapshots" else {}  # heads of 16: kernels take them
    source = _save(tmp_path / "source", variant, **sizes)
    out = tmp_path / "exported"
    outcome = convert(Request(str(source), out, to="transformers", verify=verify))
    assert outcome.record["what"].endswith("with modelling code")
    assert outcome.record["max_abs_logit_difference"] == (0.0 if verify else None)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment |= {"TRITON_INTERPRET": "1"}
    environment.pop("PYTHONPATH", None)
    kernels = ["triton"] if verify and importlib.util.find_spec("triton") else []
    done = subprocess.run(
        [sys.executable, "-c", GENERATE, str(out), *kernels],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = AutoModelForCausalLM.from_pretrained(source)
    ids = torch.tensor([[0, 0, 5, 7, 11], [1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert "trust_remote_code=True" in (out / "README.md").read_text()
    expected = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert json.loads(done.stdout.strip().splitlines()[-1]) == expected.tolist()
    convert(Request(str(out), tmp_path / "again"))
    assert_same_bits(tensors_of(source), tensors_of(tmp_path / "again"))
    assert not list((tmp_path / "again").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_exported_code_refers_to_nothing_outside_its_directory() -> None:
    files = modelling_files()
    assert {"modeling_wuneng.py", "configuration_wuneng.py", "ops_wkv7_chunked.py"} <= files.keys()
    for name, text in files.items():
        compile(text, name, "exec")
        code = [line for line in text.splitlines() if "import" in line and "wuneng." in line]
        assert not [line for line in code if line.lstrip().startswith(("from wuneng", "import wu"))]
        assert not re.search(r"wuneng::|ops\.wuneng\b", text), "would be the package's own operator"


def test_the_branch_decides_between_stock_and_code(tmp_path: Path) -> None:
    source = save_source(tmp_path / "source")
    graft = GraftSettings(cross_head="additive")
    convert(Request(str(source), tmp_path / "silent", graft=graft))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "silent")
    with torch.no_grad():
        model.model.layers[1].cross_head.alpha[0, 0] = 1e-3
    model.save_pretrained(tmp_path / "speaking")
    with pytest.raises(InputError, match=r"layers\.1\.cross_head\.alpha is not zero"):
        convert(Request(str(tmp_path / "speaking"), tmp_path / "x", to="transformers", stock=True))
    speaking = Request(
        str(tmp_path / "speaking"), tmp_path / "code", to="transformers", verify=False
    )
    spoken = convert(speaking)
    assert "auto_map" in json.loads((tmp_path / "code" / "config.json").read_text())
    assert spoken.record["added_parameters"] > 0
    silent = Request(
        str(tmp_path / "silent"), tmp_path / "kept", to="transformers", stock=False, verify=False
    )
    convert(silent)
    assert_same_bits(tensors_of(tmp_path / "silent"), tensors_of(tmp_path / "kept"))


def test_a_value_that_stock_models_refuse(tmp_path: Path) -> None:
    """transformers allows an initial scale of at most 1."""
    source = _save(tmp_path / "source", "mha", initializer_range=1.5)
    with pytest.raises(ModelError, match=r"llama cannot be made: .*initializer_range.*got 1.5"):
        convert(Request(str(source), tmp_path / "out", to="transformers", stock=True))
    request = Request(str(source), tmp_path / "code", to="transformers", verify=False)
    convert(request)  # with its own code instead
    assert "auto_map" in json.loads((tmp_path / "code" / "config.json").read_text())


def test_wiring_that_no_stock_model_has(tmp_path: Path) -> None:
    source = _save(tmp_path / "source", "mha-shift")
    with pytest.raises(ModelError, match="attention_token_shift is True"):
        convert(Request(str(source), tmp_path / "out", to="transformers", stock=True))
    source = _save(tmp_path / "mixed", "mha", attention_bias=True, mlp_bias=True)
    with pytest.raises(ModelError, match="llama: has biases on all four"):
        convert(Request(str(source), tmp_path / "out", to="transformers", stock=True))
    torch.save(random_x070(), tmp_path / "x.pth")
    with pytest.raises(InputError, match="takes a WuNeng model"):
        convert(Request(str(tmp_path / "x.pth"), tmp_path / "out", to="transformers"))


def test_an_export_that_computes_something_else_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _save(tmp_path / "source", "default")
    files = modelling_files()
    norm = "return rms_norm(x, self.weight, self.eps)"
    wrong = files["layers_norms.py"].replace(norm, f"return 1.1 * {norm.removeprefix('return ')}")
    assert wrong != files["layers_norms.py"]
    target = "wuneng.convert.remote_code.modelling_files"
    monkeypatch.setattr(target, lambda: files | {"layers_norms.py": wrong})
    with pytest.raises(VerificationError, match="full forward"):
        convert(Request(str(source), tmp_path / "out", to="transformers"))
    monkeypatch.setattr(target, lambda: files | {"layers_norms.py": "import nowhere_to_be_found"})
    with pytest.raises(RunError, match=r"does not load by itself.*nowhere_to_be_found"):
        convert(Request(str(source), tmp_path / "out", to="transformers"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
