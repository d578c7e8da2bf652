"""Parameter groups and the optimiser's state by name."""

import pytest
import torch

from tests.model.small import small_model
from tests.train.tiny import TinyModel, counting_batch, tiny_training
from wuneng.errors import CheckpointError
from wuneng.train.muon import Muon
from wuneng.train.optimizer import (
    build_optimizer,
    load_named_state,
    named_state,
    set_learning_rate,
)
from wuneng.train.step import Numerics, take_step


def group_names(model: torch.nn.Module) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, tiny_training(weight_decay=0.1))
    return {
        group["kind"]: {**group, "names": [names[id(p)] for p in group["params"]]}
        for group in optimizer.param_groups
    }


def test_rwkv7_rule_on_the_real_model() -> None:
    model = small_model()
    groups = group_names(model)
    doubled = groups["double_lr"]["names"]
    assert doubled
    assert all(name.endswith("w0") for name in doubled)
    assert groups["double_lr"]["weight_decay"] == 0
    assert groups["no_decay"]["weight_decay"] == 0
    assert groups["decay"]["weight_decay"] == 0.1
    assert all(parameter.dim() >= 2 for parameter in groups["decay"]["params"])
    everyone = [name for group in groups.values() for name in group["names"]]
    assert sorted(everyone) == sorted(name for name, _ in model.named_parameters())


def test_w0_learns_at_twice_the_rate() -> None:
    optimizer = build_optimizer(small_model(), tiny_training())
    set_learning_rate(optimizer, 0.25)
    rates = {group["kind"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"decay": 0.25, "no_decay": 0.25, "double_lr": 0.5}


def test_betas_and_epsilon_come_from_the_recipe() -> None:
    optimizer = build_optimizer(TinyModel(), tiny_training(betas=[0.8, 0.9], eps=1e-5))
    assert optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-5
    assert build_optimizer(TinyModel(), tiny_training()).defaults["betas"] == (0.9, 0.99)


def stepped_model() -> tuple[TinyModel, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = TinyModel()
    optimizer = build_optimizer(model, tiny_training())
    numerics = Numerics(torch.device("cpu"))
    take_step(model, optimizer, counting_batch(0, 4), tiny_training(), numerics, step=1, arm="t")
    return model, optimizer


def test_named_state_survives_the_round_trip() -> None:
    model, optimizer = stepped_model()
    state = {name: tensor.clone() for name, tensor in named_state(model, optimizer).items()}
    assert "exp_avg/mix.weight" in state
    other = build_optimizer(model, tiny_training())
    load_named_state(model, other, state)
    again = named_state(model, other)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("change", ["name", "shape"])
def test_state_of_another_model_is_refused(change: str) -> None:
    model, optimizer = stepped_model()
    state = named_state(model, optimizer)
    moment = state.pop("exp_avg/mix.weight")
    state["exp_avg/" + ("mixed.weight" if change == "name" else "mix.weight")] = moment[:, :-1]
    with pytest.raises(CheckpointError, match=r"exp_avg/mix.* does not fit"):
        load_named_state(model, build_optimizer(model, tiny_training()), state)


def test_muon_takes_the_matrices_inside_the_layers() -> None:
    model = small_model(tie_word_embeddings=False)
    names = {id(p): name for name, p in model.named_parameters()}
    adam, muon = (
        build_optimizer(model, tiny_training(weight_decay=0.1, optimizer=o))
        for o in ("adamw", "muon")
    )
    found = {g["kind"]: {names[id(p)] for p in g["params"]} for g in muon.param_groups}
    plain = {g["kind"]: {names[id(p)] for p in g["params"]} for g in adam.param_groups}
    assert plain["decay"] - found["hidden"] == found["decay"]
    assert {n.rpartition(".")[2] for n in found["decay"]} == {"weight", "gate_weight"}
    assert {n for n in found["decay"] if n.endswith(".weight")} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert all(
        p.dim() == 2 for g in muon.param_groups if g["kind"] == "hidden" for p in g["params"]
    )
    assert sorted(n for group in found.values() for n in group) == sorted(names.values())
    assert {g["kind"]: g["weight_decay"] for g in muon.param_groups}["hidden"] == 0.1


def muon_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for number, parameter in enumerate(model.parameters()):
        torch.manual_seed(number)
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def test_a_step_of_muon_is_a_rotation_as_large_as_adamws() -> None:
    """Newton and Schulz leave singular values near 1; the scale is 0.2 sqrt(the longer side)."""
    model = small_model()
    training = tiny_training(optimizer="muon", weight_decay=0.0, learning_rate=0.01)
    optimizer = build_optimizer(model, training)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    muon_step(model, optimizer)
    after = dict(model.named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    size = torch.linalg.svdvals((before[name] - after[name].detach()) / 0.01)
    scale = 0.2 * 48**0.5
    assert 0.6 * scale < size.min() < size.max() < 1.3 * scale
    embedding = (before["model.embed_tokens.weight"] - after["model.embed_tokens.weight"]).abs()
    torch.testing.assert_close(embedding, torch.full_like(embedding, 0.01), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (1, 7), (16, 16)])
def test_muon_on_a_cpu_steps_as_torchs_does(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Of the same state, and nearer than bfloat16's products to what float64 gives."""
    exact, ours, torchs = (
        torch.nn.Parameter(torch.linspace(-1, 1, shape[0] * shape[1]).view(shape).to(kind))
        for kind in (torch.float64, dtype, dtype)
    )
    options = {"lr": 0.1, "weight_decay": 0.3, "momentum": 0.9}
    parts = [Muon([exact], **options), Muon([ours], **options)]
    parts.append(torch.optim.Muon([torchs], adjust_lr_fn="match_rms_adamw", **options))
    for number in range(3):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(number)).to(dtype)
        for parameter, part in zip((exact, ours, torchs), parts, strict=True):
            parameter.grad = grad.to(parameter.dtype)
            part.step()
    away, allowed = ((p - exact).abs().max() for p in (ours, torchs))
    assert away <= 2 * allowed if dtype == torch.bfloat16 else away < 0.01 * allowed
    assert parts[1].state[ours].keys() == parts[2].state[torchs].keys()
    held, expected = (
        part.state[p]["momentum_buffer"] for part, p in zip(parts[1:], (ours, torchs), strict=True)
    )
    assert torch.equal(held, expected)


def test_muon_takes_no_parameter_without_a_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 4))
    part = Muon([parameter], lr=0.1)
    part.step()
    assert torch.equal(parameter, torch.ones(3, 4))
    assert not part.state


def test_muons_state_goes_on_where_it_stopped() -> None:
    training = tiny_training(optimizer="muon")
    whole, other = small_model(), small_model()
    optimizer, first = build_optimizer(whole, training), build_optimizer(other, training)
    muon_step(whole, optimizer)
    muon_step(other, first)
    state = {n: x.clone() for n, x in named_state(other, first).items()}
    assert "momentum_buffer/model.layers.0.mlp.up_proj.weight" in state
    assert "exp_avg/model.embed_tokens.weight" in state
    second = build_optimizer(other, training)
    load_named_state(other, second, state)
    for model, opt in ((whole, optimizer), (other, second)):
        set_learning_rate(opt, 0.02)
        muon_step(model, opt)
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(other.named_parameters())[name]), name
