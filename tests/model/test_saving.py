"""Checkpoints: safetensors, the Auto classes, and initial values where a checkpoint has none."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.model.small import BASE, VARIANTS, small_model
from tests.precision import assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load_bit_for_bit(variant, tmp_path):
    model = small_model(variant)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is WuNengForCausalLM
    assert again.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_auto_classes_after_import_alone(tmp_path):
    small_model().save_pretrained(tmp_path)
    code = (
        "import sys, wuneng; from transformers import AutoModelForCausalLM;"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["WuNengForCausalLM"]


def test_auto_classes_in_the_command_line_once_a_class_is_named(tmp_path):
    """There, importing the package alone registers nothing: planning needs no model."""
    small_model().save_pretrained(tmp_path)
    code = (
        "import sys, wuneng_cli, wuneng.model;"
        "from transformers import AutoModelForCausalLM;"
        "from wuneng.model import WuNengConfig;"
        "print('wuneng.model.modeling' in sys.modules);"
        "from wuneng.model import WuNengModel;"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == ["False", "WuNengForCausalLM"]


def test_missing_branch_is_initialised_and_the_rest_kept(tmp_path):
    plain = WuNengForCausalLM(WuNengConfig(**(BASE | {"num_state_heads": 0})))
    plain.save_pretrained(tmp_path)
    config = WuNengConfig(**BASE, state_branch_init="zero", state_init="published")
    torch.manual_seed(3)
    grafted = WuNengForCausalLM.from_pretrained(tmp_path, config=config)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(grafted.state_dict()[name], tensor), name
    heads = grafted.model.layers[1].state_heads
    assert torch.all(heads.k_a == 1.02)
    assert not torch.all(heads.w0 == heads.w0[0])
    assert torch.equal(heads.w1, torch.zeros_like(heads.w1))
    orthogonal = torch.linalg.qr(torch.randn(32, 16)).Q.T
    found, reference = (x @ x.T for x in (heads.r_proj.weight, orthogonal))
    assert_as_exact(found, reference, torch.eye(16).double())


def test_initial_values_follow_the_seed():
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(seed)
        states.append(WuNengForCausalLM(WuNengConfig(**BASE)).state_dict())
    same = [torch.equal(states[0][n], states[1][n]) for n in states[0]]
    assert all(same)
    assert any(not torch.equal(states[0][n], states[2][n]) for n in states[0])


@pytest.mark.parametrize("state_init", ["even", "published"])
def test_decay_starts_inside_its_range(state_init):
    """Ramps: the first channels hold on, the last ones forget fast."""
    torch.manual_seed(0)
    config = WuNengConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_state_heads=2,
        state_init=state_init,
    )
    for block in WuNengForCausalLM(config).model.layers:
        w0 = block.state_heads.w0
        decay = torch.exp(-torch.exp(torch.tensor(-0.5)) * torch.sigmoid(w0))
        assert decay.min() > 0.545
        assert decay.max() < 1
        assert w0[0] < w0[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initializer_range", -0.02),
        ("rms_norm_eps", -1e-5),
        ("max_position_embeddings", {"a": 128}),
        ("vocab_size", "many"),
        ("vocab_size", True),
        ("hidden_size", 10**30),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("attention_bias", 1),
        ("hidden_act", ["silu"]),
        ("state_layers", [0, "1"]),
        ("eos_token_id", [[1]]),
        ("rope_parameters", [1]),
    ],
)
def test_fields_of_other_types_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name} must be "):
        WuNengConfig(**(BASE | {name: value}))
