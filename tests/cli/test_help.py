"""Help answers without torch, is complete, and shows examples; mistakes get usage errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from wuneng_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'lm_eval', 'rich'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['wuneng', *{arguments!r}]\n"
        "from wuneng_cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: wuneng" in done.stdout
    assert done.stdout.endswith("LOADED []\n")


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS), ["cache", "clear"]])
def test_help_fits_80_columns(arguments: list[str]) -> None:
    """Examples of up to 101 columns were broken in the middle of words."""
    result = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=80)
    assert [line for line in result.output.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "runs/qickstart"],
        ["eval", "runs/quickstart", "--baseline", "runs/qickstart"],
        ["eval", "runs/qickstart", "--controls", "all"],
        ["inspect", "runs/qickstart"],
        ["generate", "runs/qickstart", "--prompt", "x"],
        ["bench", "--model", "runs/qickstart"],
        ["convert", "runs/qickstart", "out"],
        ["report", "runs/qickstart"],
    ],
)
def test_a_slip_in_a_name_is_told_before_anything_slow_is_imported(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "runs" / "quickstart" / "wuneng" / "model").mkdir(parents=True)
    run = tmp_path / "runs" / "quickstart"
    (run / "wuneng" / "model" / "config.json").write_text('{"num_state_heads": 2}')
    (run / "recipe.yaml").write_text((ROOT / "recipes" / "quickstart.yaml").read_text())
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'transformers', 'datasets', 'lm_eval'}\n"
        "atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))\n"
        f"sys.argv = ['wuneng', *{arguments!r}]\n"
        "from wuneng_cli.main import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "runs/qickstart does not exist" in done.stderr
    assert "Did you mean 'quickstart'?" in done.stderr
    assert done.stdout == "LOADED []\n"


def test_a_dry_run_imports_no_model() -> None:
    """Sizes come from names and shapes; transformers' models and the compiler take seconds."""
    code = (
        "import sys\n"
        "from wuneng_cli.main import app\n"
        "app(['train', 'recipes/quickstart.yaml', '--dry-run', '--no-measure',\n"
        "     '--processes', '2', '--set', 'parallel.context=2', '--roof', 'H100'],\n"
        "    standalone_mode=False)\n"
        "heavy = {'transformers.modeling_utils', 'transformers.masking_utils', 'torch._dynamo',\n"
        "         'transformers.models.llama.modeling_llama', 'torch.distributed.tensor',\n"
        "         'scipy', 'triton'}\n"
        "print('LOADED', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "training FLOPs" in done.stdout
    assert done.stdout.endswith("LOADED []\n")


def test_the_group_lists_its_commands_and_examples() -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name}  +[A-Z]", out, re.MULTILINE), f"{name} is not explained"
        assert f"  wuneng {name} " in out, f"no example of {name}"
    assert "Exit codes: 0 success" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    code, out, _ = run(name, "--help")
    assert code == 0
    assert f"  wuneng {name} " in out, "no example"
    for parameter in command.params:
        assert parameter.help, f"{name}: {parameter.name} has no help"
        for option in parameter.opts:
            if option.startswith("-"):
                assert option in out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train", ["--set", "--out", "--resume", "--dry-run", "--device", "--json", "--quiet"]),
        ("eval", ["--baseline", "--tasks", "--data-dir", "--limit", "--num-fewshot", "--batch-size",
                  "--state", "--controls", "--device", "--dtype", "--out", "--log-samples",
                  "--json", "--quiet"]),
        ("inspect", ["--text", "--task", "--seq-len", "--format", "--out", "--json", "--quiet"]),
        ("generate", ["--prompt", "--temperature", "--top-p", "--seed", "--json", "--quiet"]),
    ],
)  # fmt: skip
def test_the_promised_options_are_there(name: str, options: list[str]) -> None:
    _, out, _ = run(name, "--help")
    assert [option for option in options if option not in out] == []


def test_version() -> None:
    from wuneng import __version__

    assert run("--version") == (0, f"wuneng {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "Did you mean 'train'"),
        (["train"], "Missing argument 'RECIPE'"),
        (["train", "x.yaml", "--dryrun"], "--dry-run"),
        (["train", "x.yaml", "y.yaml"], "unexpected extra argument"),
        (["--versoin"], "--version"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert message in err
    assert out == ""


WRITING = {
    "train": ["recipes/quickstart.yaml"],
    "eval": ["--tasks", "arc"],
    "convert": ["from", "to"],
    "inspect": ["--out", "look"],
    "bench": [],
    "report": [],
}


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("name", WRITING)
def test_one_of_several_processes_refuses_to_write(
    name: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would do everything, into a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "2")
    code, out, err = run(name, *WRITING[name])
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {variable} is 2: expected one process")
    assert "torchrun" in err
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv(variable, "1")
    assert variable not in run(name, "--no-such-option")[2]


def test_every_command_is_judged() -> None:
    reading = {"generate", "cache", "recipe"}
    assert set(COMMANDS) - {*WRITING, *reading} == set()


def test_the_library_refuses_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    from wuneng.errors import InputError
    from wuneng.recipe import load_recipe
    from wuneng.train import run as train

    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match="WORLD_SIZE is 8"):
        train(load_recipe(ROOT / "recipes" / "quickstart.yaml"))


def test_python_runs_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "wuneng_cli", "--version"], capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("wuneng ")


def test_torchrun_of_another_command_fails_with_our_message(tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed.run")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"),
        *(sys.executable, "-m", "wuneng_cli", "eval", "--tasks", "arc"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode != 0
    assert "error: WORLD_SIZE is 2: expected one process" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_arguments_shows_help() -> None:
    code, out, err = run()
    assert code == 2
    assert "Usage: wuneng" in out + err


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "recipes/quickstart.yaml", "--jobs", "0"],
        ["train", "recipes/quickstart.yaml", "--processes", "0"],
        ["generate", "there", "--temperature", "0x"],
        ["bench", "--seconds", "0"],
        ["convert", "from", "to", "--seed", "-1"],
    ],
    ids=lambda arguments: arguments[-2],
)
def test_a_number_that_cannot_be_is_told(arguments: list[str]) -> None:
    """typer's own sentence says what was expected, and not what came."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert f"got '{arguments[-1]}'" in " ".join(result.output.split())
    assert arguments[-2] in result.output
