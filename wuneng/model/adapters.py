"""What an adapter of peft is asked to reach exists in the model, or the user is told.

peft skips a name that matches nothing as long as another matches something; an adapter is then
smaller than what was asked for, and a norm that was to be trained stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from torch import nn

from wuneng.errors import nearest

__all__ = ["AdapterTargets"]

#: peft puts what it wraps below these.
_WRAPPERS = ("base_layer", "original_module", "modules_to_save")


class AdapterTargets:
    """A ``torch.nn.Module`` that looks at what peft has put into it.

    peft says so by setting ``peft_config``, adapter names to their configurations.
    """

    @property
    def peft_config(self) -> Mapping[str, Any]:
        """As peft has set it. AttributeError before that, by which others see that it has not."""
        try:
            found: Mapping[str, Any] = self.__dict__["_adapter_configs"]
        except KeyError:
            raise AttributeError("peft_config") from None
        return found

    @peft_config.setter
    def peft_config(self, configs: Mapping[str, Any]) -> None:
        """ValueError where a name of ``target_modules``, ``target_parameters`` or
        ``modules_to_save`` is in no part of the model."""
        for config in configs.values():
            _check(cast(nn.Module, self), config)
        self.__dict__["_adapter_configs"] = configs

    @peft_config.deleter
    def peft_config(self) -> None:
        self.__dict__.pop("_adapter_configs", None)


def _check(model: nn.Module, config: Any) -> None:
    modules = [_unwrapped(name) for name, _ in model.named_modules()]
    parameters = [_unwrapped(name) for name, _ in model.named_parameters()]
    for field, known in (
        ("target_modules", modules),
        ("target_parameters", parameters),
        ("modules_to_save", modules),
    ):
        wanted = getattr(config, field, None)
        for name in [] if wanted is None or isinstance(wanted, str) else wanted:
            if not any(have == name or have.endswith(f".{name}") for have in known):
                last = {have.rpartition(".")[2] for have in known}
                raise ValueError(
                    f"{field}: the model has nothing that is called {name!r}."
                    f"{nearest(name, last)}{_elsewhere(field, name, parameters)} peft would pass "
                    "over it; the model has the other adapters already, so load it anew"
                )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _elsewhere(field: str, name: str, parameters: Collection[str]) -> str:
    """State heads have parameters beside their linear layers, which are reached otherwise."""
    if field == "target_modules" and any(have.endswith(f".{name}") for have in parameters):
        return f" It is a parameter: target_parameters reaches it, as in 'state_heads.{name}'."
    return ""
