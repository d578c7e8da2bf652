"""RMSNorm as Llama computes it: ``reference``, ``native`` (its gradients in C), ``interface``."""

from wuneng.ops.rms_norm.interface import rms_norm
from wuneng.ops.rms_norm.reference import rms_norm_reference

__all__ = ["rms_norm", "rms_norm_reference"]
