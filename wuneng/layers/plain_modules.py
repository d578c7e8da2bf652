"""Which modules may be read past their own call, weights and all.

Other libraries change what a module does by hooking it, wrapping it, replacing its ``forward`` or
class, parametrising, pruning, offloading or quantising its weights. All of that is seen by calling
the module, and by nothing else; so what goes past the call asks here first.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

from wuneng.ops.plain import are_plain


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is nothing but ``kind.forward`` with the weights it shows.

    A parametrised or sharded module is of a class of its own; a pruned one has a hook.
    """
    return (
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not torch_module._has_any_global_hook()
        and are_plain(*module._parameters.values())
    )
