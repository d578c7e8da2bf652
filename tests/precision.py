"""How exact a result must be: measured by what the plain formula itself loses in the same case.

A bound written as a number holds for the processor it was found on. Another one orders its sums
differently, and a problem that is badly conditioned loses more than one that is not. So a result is
judged by three things:

    exact       the plain formula in float64
    reference   the plain formula in float32, on the same values
    found       what is tested

Of each tensor the largest difference from ``exact`` counts, relative to the largest entry of
``exact``. ``found`` may lose ``FACTOR`` times what ``reference`` loses. A reference that happens to
be exact would make that impossible: ``FLOOR`` units in the last place are always allowed, and the
rounding of the output where its dtype is narrower.

In half precision the reference's results are rounded to the dtype of what is tested. Where a kernel
may round operands inside too, the formula's inputs are rounded once more in that dtype
(:func:`rounded_again`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

#: How often the reference's own loss a result may lose: that is one way of ordering the sums, which
#: may have been a lucky one.
FACTOR = 8.0
#: The same in half precision, where the loss is the dtype's, whoever sums.
FACTOR_OF_HALF = 4.0
#: Units in the last place of a tensor's largest entry that are allowed whatever the reference does.
FLOOR = 8.0
#: The same for the recurrence in chunks, which divides products of decays over tens of tokens: the
#: logarithms are large numbers of nearly equal size, where the token loop multiplies one by one.
CHUNKED_FLOOR = 24.0
#: Of float64 results, which nothing more exact is there to judge: the algebra shows, not roundings.
FLOOR_OF_FLOAT64 = 4096.0

Tensors = Tensor | Mapping[str, Tensor] | Iterable[Tensor]
Result = TypeVar("Result", bound=Tensors)


@dataclass(frozen=True)
class Loss:
    """Largest differences from the exact tensor, relative to its largest entry."""

    name: str
    found: float
    reference: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the result is as exact as it has to be."""
        return self.found <= self.allowed

    def __str__(self) -> str:
        return (
            f"{self.name}: off by {self.found:.1e}, the plain formula by {self.reference:.1e}, "
            f"allowed {self.allowed:.1e}"
        )


def assert_as_exact(
    found: Tensors,
    reference: Tensors,
    exact: Tensors,
    what: object = "",
    floor: float = FLOOR,
    scales: Mapping[str, float] | None = None,
) -> None:
    """Fail with every number of the case if a tensor loses too much.

    Args:
        found, reference, exact: one tensor, or the same number of them, by name or in order.
        what: said first in the message.
        floor: units in the last place, ``FLOOR`` or ``CHUNKED_FLOOR``.
        scales: by name, what ``floor`` is a share of where that is more than the tensor's own
            largest entry: a tensor may be a small difference of large terms.
    """
    all_of_them = losses(found, reference, exact, floor, scales)
    wrong = [str(loss) for loss in all_of_them if not loss.passed]
    right = [str(loss) for loss in all_of_them if loss.passed]
    assert not wrong, "\n".join([f"{what} less exact than it has to be", *wrong, "within:", *right])


def losses(
    found: Tensors,
    reference: Tensors,
    exact: Tensors,
    floor: float = FLOOR,
    scales: Mapping[str, float] | None = None,
) -> list[Loss]:
    """What each tensor loses, what the reference does, and what is allowed."""
    names, sides = None, []
    for side in (found, reference, exact):
        named = _named(side)
        names = names or list(named)
        assert list(named) == names, f"other tensors: {list(named)} and {names}"
        sides.append(named)
    scales = scales or {}
    return [
        _loss(name, *(side[name] for side in sides), floor, scales.get(name, 0.0))
        for name in names or ()
    ]


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact entry, undivided where that is 0; NaN is inf."""
    assert found.shape == exact.shape, f"shape {list(found.shape)}, not {list(exact.shape)}"
    if not exact.numel():
        return 0.0
    wide = exact.detach().cpu().double()
    assert wide.isfinite().all(), "the exact tensor is not finite"
    difference = float((found.detach().cpu().double() - wide).abs().max())
    scale = float(wide.abs().max())
    error = difference / scale if scale > 0 else difference
    return error if error == error else float("inf")


def worst(references: Sequence[Result], exact: Result) -> Result:
    """Of each tensor the reference that lost most: a badly conditioned case has lucky ones."""
    names, wide = list(_named(exact)), _named(exact)
    sides = [_named(reference) for reference in references]
    chosen = {
        name: max((side[name] for side in sides), key=lambda x, n=name: relative_error(x, wide[n]))
        for name in names
    }
    if isinstance(exact, Tensor):
        return chosen[names[0]]
    return chosen if isinstance(exact, Mapping) else list(chosen.values())  # type: ignore[return-value]


def rounded_again(x: Tensor, dtype: torch.dtype | str, seed: int = 0) -> Tensor:
    """x with every entry off by at most half a unit in the last place of ``dtype`` (or "tf32")."""
    unit = 2.0**-10 if isinstance(dtype, str) else torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(seed)
    off = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
    return (x.double() * (1 + off * unit / 2)).to(x.dtype)


def operand(x: Tensor, dtype: torch.dtype | str) -> Tensor:
    """float32 of a float64 leaf, rounded again if the kernel rounds its operands to ``dtype``."""
    return x.float() if dtype == torch.float32 else rounded_again(x, dtype).float()


def rounded_operands(
    exact: Mapping[str, Tensor], dtype: torch.dtype, count: int = 3
) -> list[dict[str, Tensor]]:
    """Float64 leaves as ``count`` references get them, of which :func:`worst` then chooses.

    One way of rounding may have been a lucky one where a sum cancels or a gate is steep. So the
    first has the leaves as they are (or, of a narrower dtype, rounded again as :func:`operand`
    does), the others each entry off by at most half a unit in the last place. Leaves that are
    tested in float64 stay as they are: once.
    """
    if dtype == torch.float64:
        return [{name: x.clone() for name, x in exact.items()}]
    sides = [{name: operand(x.detach(), dtype) for name, x in exact.items()}]
    for side in range(1, count):
        leaves = enumerate(exact.items())
        sides.append(
            {n: rounded_again(x.detach(), dtype, 1000 * side + i).float() for i, (n, x) in leaves}
        )
    return sides


def _loss(
    name: str, found: Tensor, reference: Tensor, exact: Tensor, floor: float, scale: float
) -> Loss:
    assert exact.dtype == torch.float64, f"{name}: an oracle in {exact.dtype}"
    narrow = found.dtype not in (torch.float32, torch.float64)
    lost = relative_error(reference.to(found.dtype) if narrow else reference, exact)
    own = float(exact.abs().max()) if exact.numel() else 0.0
    floor *= max(1.0, scale / own) if own else 1.0
    if found.dtype == torch.float64:
        always = FLOOR_OF_FLOAT64 * torch.finfo(torch.float64).eps
    else:
        always = floor * torch.finfo(torch.float32).eps
        if narrow:
            always += torch.finfo(found.dtype).eps / 2
    return Loss(
        name,
        relative_error(found, exact),
        lost,
        max((FACTOR_OF_HALF if narrow else FACTOR) * lost, always),
    )


def _named(tensors: Tensors) -> dict[str, Tensor]:
    if isinstance(tensors, Tensor):
        return {"result": tensors}
    if isinstance(tensors, Mapping):
        return dict(tensors)
    return {str(index): x for index, x in enumerate(tensors)}
