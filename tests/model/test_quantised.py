"""8-bit and 4-bit weights through ``from_pretrained(quantization_config=)``: bitsandbytes, torchao.

Where these are not installed, what can be tested is that they are named.
"""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, TorchAoConfig

from tests.model.small import small_model
from tests.train import small_upgrade
from wuneng import WuNengForCausalLM
from wuneng.errors import ModelError
from wuneng.model.call_arguments import cache_of

IDS = torch.randint(0, 61, (2, 14), generator=torch.Generator().manual_seed(4))


def four_bits() -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def eight_bits() -> Any:
    quantization = pytest.importorskip(
        "torchao.quantization", reason="torchao is not installed", exc_type=ImportError
    )
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


# On a processor with AVX-512 for bfloat16, bitsandbytes packs a layer's weights at its first call
# without gradients and computes in bfloat16, whatever bnb_4bit_compute_dtype says. It asks this.
PACKS = "support_avx512bf16_for_cpu"

WAYS = {"bitsandbytes, 4 bits": four_bits, "torchao, 8 bits": eight_bits}


def whole(weight: Any) -> Tensor | None:
    """The values that a quantised weight stands for; None for a plain one."""
    if type(weight).__name__ == "Params4bit":
        import bitsandbytes

        value: Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return value
    return weight.dequantize() if type(weight).__name__ == "Int8Tensor" else None


def in_full(quantised: Any, model: Any) -> tuple[Any, list[str]]:
    """``model`` with the values of the quantised one, and the names of the layers that are."""
    found = copy.deepcopy(model)
    names = []
    for name, module in quantised.named_modules():
        value = whole(module.weight) if isinstance(module, nn.Linear) else None
        if value is not None:
            names.append(name)
            with torch.no_grad():
                target = found.get_submodule(name).weight
                target.copy_(value.reshape(target.shape))
    return found, names


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out = model(IDS[:, :9], use_cache=True)
    pieces = [out.logits]
    for at in range(9, IDS.shape[1]):
        out = model(IDS[:, at : at + 1], past_key_values=cache_of(out), use_cache=True)
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


def in_bfloat16(model: Any, names: list[str]) -> Any:
    """``model`` with the layers of these names as bitsandbytes computes where it packs."""

    def computed(layer: nn.Module, given: tuple[Tensor, ...], _: Tensor) -> Tensor:
        return nn.functional.linear(given[0].bfloat16(), layer.weight.bfloat16()).float()

    found = copy.deepcopy(model)
    for name in names:
        found.get_submodule(name).register_forward_hook(computed)
    return found


@torch.no_grad()
def furthest(model: Any, expected: Tensor) -> Tensor:
    """The largest difference from ``expected``: in pieces, as decoded, and at once."""
    at_once = model(IDS, use_cache=False).logits
    return torch.stack([logits(model) - expected, at_once - expected]).abs().max()


def rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


@pytest.mark.parametrize("way", WAYS)
def test_a_quantised_model_computes_with_what_its_weights_stand_for(
    way: str, tmp_path: Path
) -> None:
    chosen = WAYS[way]()
    model = small_model(hidden_size=64, intermediate_size=64)
    model.save_pretrained(tmp_path / "plain")
    quantised = WuNengForCausalLM.from_pretrained(
        tmp_path / "plain", quantization_config=chosen
    ).eval()
    plain, names = in_full(quantised, model)
    assert {name.rpartition(".")[2] for name in names} >= {"q_proj", "r_proj", "branch_proj"}
    assert all(p.dtype == torch.float32 for n, p in quantised.named_parameters() if "w1" in n)
    expected = logits(plain)
    summed = 1e-5 * expected.abs().max()  # sums in another order
    layers = [quantised.get_submodule(name) for name in names]
    own = [getattr(layer, PACKS, False) for layer in layers]
    for layer in layers:
        setattr(layer, PACKS, False)
    assert furthest(quantised, expected) < summed
    for layer, packs in zip(layers, own, strict=True):
        setattr(layer, PACKS, packs)
    rounded = rms(logits(in_bfloat16(plain, names)) - expected)
    # Ten seeds lay between 0.7 and 2.1 of it; what four bits lose lies at thirty.
    assert rms(logits(quantised) - expected) < (4 * rounded if any(own) else summed)
    quantised.save_pretrained(tmp_path / "saved")
    again = WuNengForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert torch.equal(logits(again), logits(quantised))


@pytest.mark.parametrize("way", WAYS)
def test_adapters_train_on_a_quantised_model(way: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    chosen = WAYS[way]()
    small_model(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    model = WuNengForCausalLM.from_pretrained(tmp_path, quantization_config=chosen)
    targets = ["q_proj", "r_proj", "branch_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = adapted(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("bitsandbytes", lambda: BitsAndBytesConfig(load_in_4bit=True)),
        ("torchao", lambda: TorchAoConfig("int8_weight_only")),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    package: str, make: Callable[[], Any], tmp_path: Path
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    small_model().save_pretrained(tmp_path)
    with pytest.raises((ImportError, ValueError), match=package):
        WuNengForCausalLM.from_pretrained(tmp_path, quantization_config=make())


def test_a_run_does_not_start_from_quantised_weights(tmp_path: Path) -> None:
    small_upgrade.save_sources(tmp_path)
    start = tmp_path / "quantised"
    small_model(vocab_size=257).save_pretrained(start)
    config = json.loads((start / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (start / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        arms = {"wuneng": {}}
        patch.setattr(small_upgrade, "RECIPE", small_upgrade.RECIPE | {"arms": arms, "model": {}})
        with pytest.raises(ModelError, match=r"quantised weights .*bitsandbytes.*frozen_precision"):
            small_upgrade.train(tmp_path, tmp_path / "run", f"init_from={start}")
    assert not (tmp_path / "run").exists()
