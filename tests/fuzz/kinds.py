"""The kinds of files that are mutated, and what a user does with each."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.command_kinds import OwnTasks, Reports, Urls
from tests.fuzz.data_kinds import Data, Runs
from tests.fuzz.model_kinds import Configurations, Tokenizers, Weights
from tests.fuzz.recipe_kinds import EVERY_FIELD, Overrides, Recipes

__all__ = ["KINDS", "Originals", "make_originals"]


ROOT = Path(__file__).resolve().parents[2]


class Originals:
    """Whole files of every kind, made once; ``place`` is a directory to keep them in."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.recipes = [p.read_text("utf-8") for p in sorted((ROOT / "recipes").glob("*.yaml"))]
        self.recipes.append(EVERY_FIELD)
        self.models: dict[str, Path] = {}


def make_originals(place: Path) -> Originals:
    """Small models, tokenizers and a run, made in a fork: a process that has computed has threads,
    which its own forks would wait for. What the cases need is imported here, once for all."""
    from tests.fuzz.originals import fill, import_the_rest

    child = os.fork()
    if not child:
        try:
            fill(place)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the originals could not be made")
    import_the_rest(place)
    originals = Originals(place)
    originals.models = {path.name: path for path in place.iterdir()}
    return originals


#: Each kind and its share of all cases.
KINDS: dict[str, tuple[Callable[[Originals], Any], float]] = {
    "recipe": (Recipes, 0.24),
    "override": (Overrides, 0.12),
    "index": (lambda o: Weights(o, "index"), 0.13),
    "safetensors": (lambda o: Weights(o, "safetensors"), 0.16),
    "pth": (lambda o: Weights(o, "pth"), 0.04),
    "dcp": (lambda o: Weights(o, "dcp"), 0.03),
    "config": (Configurations, 0.05),
    "tokenizer": (Tokenizers, 0.06),
    "data": (Data, 0.135),
    "run": (Runs, 0.015),
    "report": (Reports, 0.01),
    "task": (OwnTasks, 0.002),
    "url": (Urls, 0.008),
}


# Nothing that a mutant names is to be fetched.
os.environ["HF_HUB_OFFLINE"] = "1"


# Threads of a parent are missing in its forks.
os.environ["TOKENIZERS_PARALLELISM"] = "false"
