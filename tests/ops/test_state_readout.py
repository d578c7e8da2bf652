"""The state heads' readout (group norm, bonus, gate) against plain autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.precision import FLOOR, assert_as_exact
from wuneng.ops.readout import state_readout, state_readout_reference

EPS = 64e-5
TENSORS = ("y", "r", "key", "v")
WEIGHTS = ("norm_weight", "norm_bias", "bonus")
PARTS = ("norm", "bonus", "gate")


def drawn(
    shape: tuple[int, ...], dtype: torch.dtype, parts: tuple[str, ...], scale: float = 1.0
) -> dict[str, Tensor]:
    """Float64 leaves of values that ``dtype`` can represent; weights at their float32 value."""
    generator = torch.Generator().manual_seed(0)

    def draw(size: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        x = scale * torch.randn(*size, generator=generator, dtype=torch.float64)
        return x.to(dtype).double().requires_grad_()

    leaves = {name: draw(shape, dtype) for name in TENSORS}
    if "norm" in parts:
        leaves |= {name: draw(shape[-2:], dtype) for name in ("norm_weight", "norm_bias")}
    if "bonus" in parts:
        leaves["bonus"] = draw(shape[-2:], dtype)
    if "gate" in parts:
        leaves["gate"] = draw(shape, dtype)
    return leaves


def called(operator: Callable[..., Tensor], leaves: dict[str, Tensor]) -> Tensor:
    optional = {name: leaves.get(name) for name in (*WEIGHTS, "gate")}
    return operator(*(leaves[name] for name in TENSORS), norm_eps=EPS, **optional)


def reference_readout(*tensors: Tensor, norm_eps: float, **optional: Tensor | None) -> Tensor:
    """The reference, which takes all in order, called as the operator is."""
    names = ("norm_weight", "norm_bias", "bonus", "gate")
    return state_readout_reference(*tensors, *(optional[n] for n in names), norm_eps=norm_eps)


def sides(
    operator: Callable[..., Tensor], exact: dict[str, Tensor], tested: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """R and every gradient: the operator's, and the reference's in float32 and in float64."""
    found = called(operator, tested)
    incoming = torch.randn(found.shape, dtype=torch.float64).to(found)
    rough = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    calls = [(found, tested)]
    calls += [(called(reference_readout, x), x) for x in (rough, exact)]
    results = []
    for out, leaves in calls:
        gradients = torch.autograd.grad(
            out, list(leaves.values()), incoming.to(out), materialize_grads=True
        )
        named = {"d" + name: x for name, x in zip(leaves, gradients, strict=True)}
        results.append({"R": out.detach(), **named})
    assert all(results[0]["d" + name].dtype == x.dtype for name, x in tested.items())
    return results


def assert_close(
    operator: Callable[..., Tensor],
    exact: dict[str, Tensor],
    tested: dict[str, Tensor],
    floor: float = FLOOR,
) -> None:
    """Fail with every number of the case if a tensor loses too much."""
    assert_as_exact(*sides(operator, exact, tested), floor=floor)


def assert_close_in_float32(operator: Callable[..., Tensor], exact: dict[str, Tensor]) -> None:
    """As :func:`assert_close`, where the operator is given float32."""
    tested = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    assert_close(operator, exact, tested)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parts", [PARTS, PARTS[:2], PARTS[1:], ("norm",), ("gate",), ()])
@pytest.mark.parametrize("shape", [(2, 37, 3, 16), (1, 1, 1, 5), (3, 1, 2, 64)])
def test_output_and_gradients(
    shape: tuple[int, ...], parts: tuple[str, ...], dtype: torch.dtype
) -> None:
    exact = drawn(shape, dtype, parts)
    tested = {name: x.detach().to(dtype).requires_grad_() for name, x in exact.items()}
    assert_close(state_readout, exact, tested)


@pytest.mark.parametrize("parts", [PARTS, PARTS[1:], ("norm",), ()])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 3, 16), (1, 1, 2, 64)])
def test_without_gradients(
    dtype: torch.dtype, parts: tuple[str, ...], shape: tuple[int, ...]
) -> None:
    exact = drawn(shape, dtype, parts)
    leaves = {name: x.detach().to(dtype) for name, x in exact.items()}
    kept = {name: x.detach().clone() for name, x in leaves.items()}
    with torch.no_grad():
        alone = called(state_readout, leaves)
        reference = called(reference_readout, {name: x.float() for name, x in leaves.items()})
    assert_as_exact(alone, reference, called(reference_readout, exact))
    assert alone.dtype == dtype
    assert all(torch.equal(leaves[name], x) for name, x in kept.items()), "an input was written"


def test_mixed_types_as_under_autocast() -> None:
    """Half-precision activations, float32 weights: R follows v, gradients their own tensors."""
    exact = drawn((2, 9, 2, 16), torch.bfloat16, PARTS)
    tested = {
        name: x.detach().to(torch.float32 if name in WEIGHTS else torch.bfloat16).requires_grad_()
        for name, x in exact.items()
    }
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(state_readout, exact, tested)
        assert called(state_readout, tested).dtype == torch.bfloat16


def test_statistics_are_float32_for_half_precision() -> None:
    """A large common offset would lose every digit of a variance in bfloat16."""
    y = (256 + 2.0 * torch.randn(1, 50, 1, 64)).to(torch.bfloat16)
    ones = torch.ones(1, 64)
    leaves = dict.fromkeys(TENSORS, y) | {"norm_weight": ones, "norm_bias": 0 * ones}
    reference, exact = (
        torch.nn.functional.layer_norm(x, (64,), eps=EPS) for x in (y.float(), y.double())
    )
    assert_as_exact(called(state_readout, leaves), reference, exact)


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_zero_tiny_and_huge(scale: float) -> None:
    assert_close_in_float32(state_readout, drawn((1, 7, 2, 16), torch.float32, PARTS, scale))


def test_gradcheck() -> None:
    leaves = drawn((1, 3, 2, 4), torch.float64, PARTS)
    names = list(leaves)
    assert torch.autograd.gradcheck(
        lambda *xs: called(state_readout, dict(zip(names, xs, strict=True))),
        tuple(leaves.values()),
    )


def test_compiles_without_a_graph_break() -> None:
    exact = drawn((1, 5, 2, 8), torch.float32, PARTS)
    leaves = {name: x.detach().float() for name, x in exact.items()}
    compiled = torch.compile(
        lambda leaves: called(state_readout, leaves), fullgraph=True, backend="aot_eager"
    )
    reference = called(reference_readout, leaves)
    assert_as_exact(compiled(leaves), reference, called(reference_readout, exact))


def test_half_a_norm_is_refused() -> None:
    leaves = drawn((1, 2, 1, 4), torch.float32, PARTS)
    del leaves["norm_bias"]
    with pytest.raises(ValueError, match="norm_bias is missing"):
        called(state_readout, leaves)
