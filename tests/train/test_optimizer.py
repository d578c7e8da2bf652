"""Parameter groups and the optimiser's state by name."""

import pytest
import torch

from tests.model.small import small_model
from tests.train.tiny import TinyModel, counting_batch, tiny_training
from wuneng.errors import CheckpointError
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
    optimizer = build_optimizer(TinyModel(), tiny_training())
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
