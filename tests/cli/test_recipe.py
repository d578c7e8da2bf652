"""``wuneng recipe``: the fields in every width, the page, the record; and a recipe resolved."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.cli.commands import outcome
from wuneng.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


run = partial(outcome, "recipe")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_fields_fit_the_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = run("--fields")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    assert "data.tasks.N (task: recall): Multi-query" in " ".join(out.split())
    assert "learning_rate" in out.replace("│\n│", "")
    assert "[required]" in out


def test_the_page_in_docs_is_fresh() -> None:
    """In a process of its own: a test may have registered a kind of heads."""
    command = [sys.executable, "-m", "wuneng_cli", "recipe", "--fields", "--markdown"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert page == done.stdout, "stale: wuneng recipe --fields --markdown > docs/recipe.md"


def test_the_fields_as_a_record() -> None:
    code, out, _ = run("--fields", "--json")
    assert code == 0
    sections = json.loads(out)["sections"]
    fields = {field["path"]: field for section in sections for field in section["fields"]}
    assert fields["training.schedule"]["choices"] == ["cosine", "wsd", "constant"]
    assert fields["training.schedule"]["default"] == "cosine"
    assert fields["data.train"]["required"] is True
    assert fields["model.hidden_size"]["meaning"] == "D, the width of the residual stream."


def test_a_recipe_is_resolved(tmp_path: Path) -> None:
    change = "training.steps=700"
    code, out, _ = run(QUICKSTART, "--set", change)
    assert code == 0
    written = tmp_path / "quickstart.yaml"
    written.write_text(out, encoding="utf-8")
    assert load_recipe(written) == load_recipe(Path(QUICKSTART), [change])
    code, record, _ = run(QUICKSTART, "--set", change, "--json")
    assert code == 0
    assert json.loads(record) == yaml.safe_load(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a recipe to resolve or --fields, got neither"),
        ([QUICKSTART, "--fields"], "expected either a recipe to resolve or --fields, got both"),
        (["--fields", "--set", "seed=1"], "--set changes a recipe"),
        (["--fields", "--markdown", "--json"], "expected one of --markdown and --json"),
        ([QUICKSTART, "--markdown"], "--markdown is a form of --fields"),
        ([QUICKSTART, "--set", "trainng.steps=1"], "Did you mean 'training'"),
        (["no-such.yaml"], "recipe no-such.yaml does not exist"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("arguments", [["--fields"], [QUICKSTART]])
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from wuneng_cli.main import app\n"
        f"app(['recipe', *{arguments!r}], standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'lm_eval'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("LOADED []\n")
