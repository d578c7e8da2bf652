"""The base of every part of a recipe: strict types, unknown keys refused."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Settings"]


class Settings(BaseModel):
    """A mapping in a recipe whose keys are known in advance.

    Types are strict: text is not taken for a number, nor ``true`` for 1. The numeric types of
    ``wuneng.recipe.sizes`` accept the ways people write numbers.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, validate_default=True, protected_namespaces=()
    )
