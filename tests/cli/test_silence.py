"""What reaches stderr is this package's own; generating imports no compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

#: A dependency that talks while it is imported, as each of ours has done in some release.
NOISE = """
import logging, sys, warnings

class Noisy:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch.nn.functional", "transformers.modeling_utils"):
            warnings.warn("planted warning", FutureWarning)
            logging.getLogger("transformers.models").warning("planted line of a logger")
            logging.getLogger("unheard.of").warning("planted line of another logger")
        if name == "transformers.modeling_utils":
            logging.getLogger("unheard.of").error("planted error")

sys.meta_path.insert(0, Noisy())
"""
TEXT = "Once upon a time there was a cat. "
RECIPE = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng, mha]
data: {kind: text, train: text.txt, validation: held-out.txt, cache_dir: cache}
training: {steps: 1, sequence_length: 32, batch_size: 2}
device: cpu
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small Llama, a recipe, its text, and the planted noise."""
    from tests.evaluate.conftest import save_model, tiny_llama

    directory = tmp_path_factory.mktemp("silence")
    save_model(tiny_llama(), directory / "llama")
    (directory / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (directory / "text.txt").write_text(TEXT * 40, encoding="utf-8")
    (directory / "held-out.txt").write_text("Another text. " * 40, encoding="utf-8")
    (directory / "noise").mkdir()
    (directory / "noise" / "sitecustomize.py").write_text(NOISE, encoding="utf-8")
    return directory


def wuneng(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wuneng_cli", *arguments]
    path = os.pathsep.join([str(place / "noise"), str(ROOT)])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env=variables, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


# An error comes through; and of ours, where kernels are not built yet, that it takes its time.
ERRORS = re.compile(r"^(?:planted error|waiting for cc, .*)\n", re.MULTILINE)
GENERATE = ("generate", "llama", "--prompt", "Once", "--max-tokens", "4", "--seed", "1")


def test_around_a_text_there_are_two_lines_of_ours(place: Path) -> None:
    done = wuneng(place, *GENERATE)
    assert "planted error" in done.stderr, "real errors come through"
    own = ERRORS.sub("", done.stderr).splitlines()
    assert len(own) == 2, own
    assert own[0] == "llama, cpu"
    assert re.fullmatch(r"4 tokens in .* seed 1", own[1])


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "recipe.yaml", "--profile", "1-1", "--quiet"),
        ("eval", "llama", "--tasks", "boolq", "--data-dir", "tests", "--quiet"),
        ("convert", "llama", "upgraded", "--state-heads", "2", "--quiet"),
        ("bench", "--what", "decode", "--seq-len", "16", "--seconds", "0.1", "--quiet"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_quiet_is_quiet(place: Path, arguments: tuple[str, ...]) -> None:
    from tests.evaluate.conftest import evaluation_rows, write_rows

    rows = {name: rows for name, rows in evaluation_rows(4).items() if name.startswith("boolq")}
    if not (place / "tests").exists():
        (place / "tests").mkdir()
        write_rows(place / "tests", rows)
    done = wuneng(place, *arguments)
    assert ERRORS.sub("", done.stderr) == ""
    assert "planted" not in done.stdout


def test_verbose_lets_everything_through(place: Path) -> None:
    for more, variables in ((["--verbose"], {}), ([], {"WUNENG_VERBOSE": "1"})):
        done = wuneng(place, *GENERATE, *more, **variables)
        for part in ("FutureWarning: planted warning", "line of a logger", "another logger"):
            assert part in done.stderr
    asked = wuneng(place, *GENERATE, PYTHONWARNINGS="default")
    assert "FutureWarning: planted warning" in asked.stderr


WARNINGS_THAT_MATTER = """
import logging, warnings
from wuneng_cli.silence import silenced

with silenced():
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    for _ in range(3):
        torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))
    warnings.warn("planted warning")
    logging.getLogger("wandb.sdk").warning("upload failed")
    logging.getLogger("wandb.sdk").info("planted line")
    logging.getLogger("unheard.of").warning("planted line")
"""


def test_warnings_that_tell_of_the_run_come_through() -> None:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-c", WARNINGS_THAT_MATTER],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables,
        check=True,
    )
    repeated, upload = done.stderr.splitlines()
    assert re.fullmatch(r"warning: torch's put_ is not deterministic: .*", repeated)
    assert upload == "upload failed"


#: What a first token does not need, and what importing it costs on an idle core.
NOT_FOR_GENERATE = ("torch._dynamo.utils", "torch._inductor", "triton", "scipy", "lm_eval",
                    "datasets", "matplotlib", "pandas", "sklearn", "rich.table")  # fmt: skip


def test_generate_imports_what_it_uses(place: Path) -> None:
    code = (
        "import sys\n"
        # httpx imports it to say how it is called; before rich 14 its tables come with it.
        "import rich.console\n"
        f"seldom = {set(NOT_FOR_GENERATE)!r} - set(sys.modules)\n"
        f"sys.argv = ['wuneng', *{GENERATE!r}, '--quiet']\n"
        "from wuneng_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as stopped:\n    assert not stopped.code\n"
        "print('LOADED', sorted(seldom & set(sys.modules)))\n"
        # Not the names that transformers 5.17 writes into sys.modules without loading anything.
        "models = {m for m in sys.modules if m.startswith('transformers.') "
        "and '.configuration_' in m}\n"
        "print('MODELS', len(models))\n"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    variables.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=place, env=variables
    )
    assert done.returncode == 0, done.stderr
    assert "LOADED []\n" in done.stdout
    assert int(done.stdout.rpartition("MODELS ")[2]) < 20, "not every model that transformers has"


STAND_INS = """
import sys
from wuneng_cli.startup import light_imports

with light_imports():
    import transformers.masking_utils
    from transformers.generation import candidate_generator
    from transformers.loss import loss_for_object_detection
    assert "torch._dynamo.utils" not in sys.modules
    assert "sklearn.utils" not in sys.modules
assert "torch._dynamo" not in sys.modules
assert "sklearn.metrics" not in sys.modules

import torch
from transformers import LlamaConfig

small = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
small._attn_implementation = "sdpa"
document = torch.tensor([[0, 0, 1, 1]])
mask = transformers.masking_utils.create_causal_mask(
    config=small, inputs_embeds=torch.zeros(1, 4, 8), attention_mask=None, past_key_values=None,
    and_mask_function=lambda b, h, q, k: document[b, q] == document[b, k],
)
assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
import torch._dynamo
assert torch._dynamo.allow_in_graph.__module__.startswith("torch._dynamo")
assert sys.modules["torch._dynamo"] is torch._dynamo
try:
    found = loss_for_object_detection.linear_sum_assignment([[1.0, 0.0], [0.0, 1.0]])
except ModuleNotFoundError as error:  # scipy is no dependency of ours
    assert error.name == "scipy"
else:
    assert [list(axis) for axis in found] == [[0, 1], [1, 0]]
if curve := getattr(candidate_generator, "roc_curve", None):  # before 5.24 taken at import
    assert [list(axis) for axis in curve([0, 1], [0.2, 0.8])[:2]] == [[0, 0, 1], [0, 1, 1]]
print("done")
"""
INSIDE = """
from wuneng_cli.startup import light_imports

with light_imports():
    import torch
    from torch._dynamo.utils import warn_once  # as torchao does
    assert torch._dynamo.config is not None
import torch._dynamo.utils
assert torch._dynamo.utils.warn_once is warn_once
print("done")
"""


@pytest.mark.parametrize("code", [STAND_INS, INSIDE], ids=["on use", "from inside"])
def test_what_was_left_out_is_loaded_when_it_is_used(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
