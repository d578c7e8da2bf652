"""What others hook, wrap, offload, quantise, prune or parametrise is seen, at every token."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from tests.model.small import OTHER_KINDS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.layers.middle.gated import Gated as CrossHead
from wuneng.layers.short_conv import ShortConv
from wuneng.layers.state.base import StateHeads
from wuneng.model.call_arguments import cache_of

VARIANTS = [
    "default",
    "additive",
    "concat",
    "no-middle",
    "snapshots",
    "pre-shift-own",
    "pure-state",
    *OTHER_KINDS,
]
HEAD_NORMS = ("g_norm", "o_norm")
#: Parameters that state heads of one kind or another have beside their modules.
OWN = ("w1", "k_k", "A_log", "dt_bias")
IDS = torch.randint(0, 61, (2, 14), generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def logits(model, ids=IDS, prompt=9):
    """Of a prompt and of tokens decoded one by one behind it."""
    out = model(ids[:, :prompt], use_cache=True)
    pieces = [out.logits]
    for at in range(prompt, ids.shape[1]):
        out = model(ids[:, at : at + 1], past_key_values=cache_of(out), use_cache=True)
        pieces.append(out.logits)
    return torch.cat(pieces, dim=1)


def assert_same(changed, plain):
    """Two models say the same, the second of which nobody touched."""
    whole = plainly(plain, lambda m: m(IDS, use_cache=False).logits.detach())
    assert_as_exact(logits(changed), *whole, floor=CHUNKED_FLOOR)


def heads_of(model):
    return [m for m in model.modules() if isinstance(m, (StateHeads, CrossHead))]


def watched(model):
    """Every module inside the state and middle heads, these themselves, and attention's short
    convolutions, by name."""
    for name, module in model.named_modules():
        inside = any(part in name.split(".") for part in ("state_heads", "cross_head"))
        if inside or isinstance(module, ShortConv):
            yield name, module


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_module_is_called_where_it_is_hooked(variant):
    model = small_model(variant)
    calls: dict[str, int] = {}
    for name, module in watched(model):
        module.register_forward_hook(
            lambda m, args, out, name=name: calls.__setitem__(name, calls.get(name, 0) + 1)
        )
    assert_same(model, small_model(variant))
    assert calls == {name: 6 for name, _ in watched(model)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_global_hook_sees_every_module(variant):
    model = small_model(variant)
    seen = set()
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.add(m))
    try:
        assert_same(model, small_model(variant))
    finally:
        handle.remove()
    assert {module for _, module in watched(model)} <= seen


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replaced_forward_is_called(variant):
    model = small_model(variant)
    twice = copy.deepcopy(model)
    for (_, module), (_, other) in zip(watched(model), watched(twice), strict=True):
        if isinstance(module, nn.Linear):
            with torch.no_grad():
                for parameter in other.parameters():
                    parameter.mul_(2)
            module.forward = lambda x, own=module: 2 * nn.functional.linear(x, own.weight, own.bias)
    assert_same(model, twice)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_norm_that_is_saved_by_an_adapter_still_norms(variant):
    peft = pytest.importorskip("peft")
    model = small_model(variant)
    expected = logits(model)
    config = peft.LoraConfig(target_modules=["r_proj"], modules_to_save=["norm"])
    adapted = peft.get_peft_model(model, config)
    wrapped = [n for n, m in adapted.named_modules() if type(m).__name__ == "ModulesToSaveWrapper"]
    assert any(n.endswith(HEAD_NORMS) for n in wrapped)
    assert_same(adapted.base_model.model, small_model(variant))
    # What is trained is what is used.
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if any(norm in name for norm in HEAD_NORMS) and "modules_to_save" in name:
                parameter.zero_()
    assert (logits(adapted.base_model.model) - expected).abs().max() > 1e-3


def test_adapters_on_parameters():
    peft = pytest.importorskip("peft")
    model = small_model()
    config = peft.LoraConfig(
        target_modules=[], target_parameters=["state_heads.w1", "cross_head.gate_weight"], r=2
    )
    adapted = peft.get_peft_model(model, config)
    assert_same(adapted.base_model.model, small_model())
    ids = IDS[:1]
    adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pruned_weights_are_zero(variant):
    model = small_model(variant)
    zeroed = copy.deepcopy(model)
    for module, other in zip(heads_of(model), heads_of(zeroed), strict=True):
        names = [n for n in OWN if hasattr(module, n)] or ["scale"]
        for name in names:
            prune.random_unstructured(module, name, amount=0.5)
            with torch.no_grad():
                getattr(other, name).mul_(getattr(module, f"{name}_mask"))
        inner = module.r_proj if isinstance(module, StateHeads) else module.branch_proj
        prune.l1_unstructured(inner, "weight", amount=0.5)
        twin = other.r_proj if isinstance(other, StateHeads) else other.branch_proj
        with torch.no_grad():
            twin.weight.mul_(inner.weight_mask)
    for (_, module), (_, other) in zip(list(watched(model)), list(watched(zeroed)), strict=True):
        if isinstance(module, ShortConv):
            prune.random_unstructured(module, "weight", amount=0.5)
            with torch.no_grad():
                other.weight.mul_(module.weight_mask)
    assert_same(model, zeroed)


class _Halved(nn.Module):
    def forward(self, x):
        return x / 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_parametrised_weights_are_what_the_parametrisation_says(variant):
    model = small_model(variant)
    halved = copy.deepcopy(model)
    for (_, module), (_, other) in zip(list(watched(model)), list(watched(halved)), strict=True):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(module, StateHeads) or name in (*OWN, "a2", "k_a", "r_k"):
                parametrize.register_parametrization(module, name, _Halved())
                with torch.no_grad():
                    getattr(other, name).copy_(parameter / 2)
    assert_same(model, halved)


def test_weight_normalisation():
    model = small_model()
    for module in heads_of(model):
        inner = module.r_proj if isinstance(module, StateHeads) else module.branch_proj
        parametrizations.weight_norm(inner)
    assert_same(model, small_model())


def test_weights_that_are_kept_elsewhere(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    for variant in VARIANTS:
        model = small_model(variant)
        offloaded = accelerate.cpu_offload(copy.deepcopy(model), execution_device="cpu")
        assert_same(offloaded, small_model(variant))
        on_disk = accelerate.disk_offload(model, tmp_path / variant, execution_device="cpu")
        assert_same(on_disk, small_model(variant))


@pytest.mark.parametrize("variant", ["default", "mha", "pure-state", *OTHER_KINDS])
def test_a_model_that_is_loaded_to_the_disk(variant, tmp_path):
    pytest.importorskip("accelerate")
    model = small_model(variant)
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys([f"model.{name}" for name, _ in model.model.named_children()], "cpu")
    places = {**places, "model.layers": "disk", "lm_head": "cpu"}
    loaded = WuNengForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "folder")
    )
    assert all(p.is_meta for p in loaded.model.layers.parameters())
    assert_same(loaded.eval(), model)
    written = loaded.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    expected = model.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert torch.equal(written, expected)


_BLOCK = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
MAPS = {
    "what transformers chooses": "auto",
    "all on the disk": {"": "disk"},
    "a block's heads on the disk": {
        **dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu"),
        **dict.fromkeys(["model.layers.0", *(f"model.layers.1.{p}" for p in _BLOCK)], "cpu"),
        **dict.fromkeys(["model.layers.1.state_heads", "model.layers.1.cross_head"], "disk"),
    },
}


@pytest.mark.parametrize("places", MAPS)
def test_a_model_is_loaded_by_a_device_map(places, tmp_path):
    pytest.importorskip("accelerate")
    model = small_model()
    model.save_pretrained(tmp_path / "model")
    memory = {"cpu": 20_000} if MAPS[places] == "auto" else None  # less than the model takes
    loaded = WuNengForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map=MAPS[places],
        max_memory=memory,
        offload_folder=str(tmp_path / "folder"),
    ).eval()
    away = {name for name, p in loaded.named_parameters() if p.is_meta}
    assert {"model.layers.1.state_heads.w1", "model.layers.1.cross_head.gate_weight"} <= away
    assert_same(loaded, model)
    loaded.save_pretrained(tmp_path / "again")
    again = WuNengForCausalLM.from_pretrained(tmp_path / "again")
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Scaled(torch.Tensor):
    """A weight that is stored scaled: reading its memory would give three times the value."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype)

    def __init__(self, stored):
        self.stored = stored

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        def plain(x):
            return x.stored / 3 if isinstance(x, Scaled) else x

        if func is torch.ops.aten.detach.default:
            return Scaled(args[0].stored)
        args, kwargs = torch.utils._pytree.tree_map(plain, (args, kwargs or {}))
        return func(*args, **kwargs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tensor_subclass_is_asked_for_its_value(variant):
    model = small_model(variant)
    for _, module in list(watched(model)):
        for name, parameter in list(module.named_parameters(recurse=False)):
            stored = Scaled(parameter.detach() * 3)
            setattr(module, name, nn.Parameter(stored, requires_grad=False))
    assert_same(model, small_model(variant))


def test_quantised_weights_decode():
    quantization = pytest.importorskip("torchao.quantization")
    model = small_model(hidden_size=64, intermediate_size=64)
    expected = logits(model)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    got = logits(model)
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()
    with torch.no_grad():
        whole = model(IDS, use_cache=False).logits
    assert (got - whole).abs().max() < 0.1 * (got - expected).abs().max()
