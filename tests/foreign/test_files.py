"""Links and names that lead out of a directory are not followed, whichever command reads it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.convert.sources import save_source
from wuneng.convert.families import FAMILIES
from wuneng.errors import ModelError, RecipeError
from wuneng.foreign import check_index, check_link, regular_file_inside
from wuneng_cli.main import app

SECRET = "root:$6$secret:19000:0:99999:7:::\nkey: hush\n"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file of the system that nobody means to show."""
    file = tmp_path / "system" / "shadow"
    file.parent.mkdir()
    file.write_text(SECRET)
    return file


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with a tokenizer, and its parent for copies."""
    from wuneng.data.tokenizer import byte_tokenizer

    place = tmp_path_factory.mktemp("saved") / "llama"
    directory = save_source(place, vocab_size=257, num_hidden_layers=1)
    byte_tokenizer().save_pretrained(directory)
    (directory / "LICENSE").write_text("Do as you like.\n")
    return directory


@pytest.fixture
def model(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(saved, tmp_path / "model"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE.txt", "tokenizer_config.json", "vocab.json"])
def test_a_companion_that_leads_elsewhere_is_not_exported(
    name: str, model: Path, secret: Path
) -> None:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    done = run("convert", str(model), "there", "--no-verify")
    assert done.exit_code == 2, done.output
    assert f"{model / name}: a link to {secret}" in done.output
    assert "hush" not in done.output
    assert not Path("there").exists()


@pytest.mark.parametrize("kind", ["dangling", "circle", "pipe"])
def test_a_companion_that_is_no_file(kind: str, model: Path) -> None:
    license_file = model / "LICENSE"
    license_file.unlink()
    if kind == "pipe":
        os.mkfifo(license_file)
    else:
        license_file.symlink_to(license_file if kind == "circle" else model / "nowhere")
    done = run("convert", str(model), "there", "--no-verify")
    assert done.exit_code == 2, done.output
    assert str(license_file) in done.output


def test_links_inside_the_directory_are_followed(model: Path) -> None:
    (model / "LICENSE").rename(model / "terms")
    (model / "LICENSE").symlink_to("terms")
    done = run("convert", str(model), "there", "--no-verify")
    assert done.exit_code == 0, done.output
    assert Path("there/LICENSE").read_text() == "Do as you like.\n"
    assert not Path("there/LICENSE").is_symlink()


def hub_cache(model: Path, root: Path) -> Path:
    """``model`` as huggingface_hub keeps it: a snapshot of links to numbered blobs."""
    blobs, snapshot = root / "blobs", root / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    return snapshot


def test_a_snapshot_of_the_hub_converts_and_generates(model: Path, tmp_path: Path) -> None:
    snapshot = hub_cache(model, tmp_path / "hub" / "models--a--b")
    done = run("convert", str(snapshot), "there", "--no-verify")
    assert done.exit_code == 0, done.output
    assert Path("there/LICENSE").read_text() == "Do as you like.\n"
    done = run("generate", str(snapshot), "--prompt", "x", "--max-tokens", "2")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("how", ["out of the snapshot", "blobs elsewhere"])
def test_a_snapshot_opens_no_other_way_out(
    how: str, model: Path, secret: Path, tmp_path: Path
) -> None:
    root = tmp_path / "hub"
    snapshot = hub_cache(model, root)
    (snapshot / "LICENSE").unlink()
    if how == "blobs elsewhere":
        shutil.rmtree(root / "blobs")
        (root / "blobs").symlink_to(secret.parent)
        (snapshot / "LICENSE").symlink_to(Path("../../blobs") / secret.name)
    else:
        (snapshot / "LICENSE").symlink_to(secret)
    with pytest.raises(ModelError, match="a link to"):
        regular_file_inside(snapshot / "LICENSE", snapshot)


def spoil_index(model: Path, shard: Any) -> None:
    """Move the weights beside the directory; the index says so."""
    weights = model / "model.safetensors"
    from safetensors import safe_open

    with safe_open(weights, framework="pt") as handle:
        names = list(handle.keys())
    weights.rename(model.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


RECIPE = """
init_from: {model}
arms: {{wuneng: {{train: new}}}}
data: {{kind: text, train: [text.txt], cache_dir: cache}}
training: {{steps: 1, batch_size: 1, sequence_length: 16}}
device: cpu
"""


@pytest.mark.parametrize("command", ["convert", "generate", "eval", "train"])
def test_an_index_that_leads_outside_is_refused_by_every_command(command: str, model: Path) -> None:
    spoil_index(model, "../outside.safetensors")
    Path("text.txt").write_text("a line of text\n" * 100)
    Path("r.yaml").write_text(RECIPE.format(model=model))
    done = run(
        *{
            "convert": ["convert", str(model), "there"],
            "generate": ["generate", str(model), "--prompt", "x", "--max-tokens", "2"],
            "eval": ["eval", str(model), "--tasks", "copa", "--data-dir", str(_copa())],
            "train": ["train", "r.yaml"],
        }[command]
    )
    assert done.exit_code == 2, done.output
    assert "'../outside.safetensors'" in done.output
    assert "same directory" in done.output


def _copa() -> Path:
    directory = Path("files")
    directory.mkdir()
    row = {"premise": "It rained.", "choice1": "wet", "choice2": "dry", "question": "effect"}
    (directory / "copa_validation.jsonl").write_text(
        "".join(json.dumps({**row, "label": n % 2, "idx": n}) + "\n" for n in range(4))
    )
    return directory


@pytest.mark.parametrize("kind", ["wuneng", "llama"])
def test_our_own_models_are_checked_as_well(kind: str, model: Path) -> None:
    """bench and training's start load through the same door."""
    from wuneng.model.pretrained import load_causal_model

    if kind == "wuneng":
        assert run("convert", str(model), "own", "--no-verify").exit_code == 0
        model = Path("own").resolve()
    spoil_index(model, "../outside.safetensors")
    with pytest.raises(ModelError, match="same directory"):
        load_causal_model(model)


@pytest.mark.parametrize("shard", ["/etc/x.safetensors", "a/b.safetensors", "..", "", 3, None, []])
def test_what_an_index_may_not_name(shard: Any, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ModelError, match="expected the name of a safetensors file"):
        check_index(tmp_path)


def test_a_shard_that_is_a_pipe(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    check_index(tmp_path)  # a missing one is the loader's to tell
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="expected a regular file"):
        check_index(tmp_path)


@pytest.mark.parametrize("how", ["file", "directory", "set beside"])
def test_a_recipe_that_leads_elsewhere_is_not_quoted(
    how: str, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    given = {"file": "r.yaml", "directory": "d/shadow", "set beside": str(work / "r.yaml")}[how]
    if how == "directory":
        Path("d").symlink_to(secret.parent)
    else:
        Path("r.yaml").symlink_to(secret)
    if how == "set beside":
        monkeypatch.chdir(secret.parent.parent / "system")
    done = run("train", given)
    assert done.exit_code == 2
    assert f"recipe {given} is a link to {secret}" in done.output
    assert "hush" not in done.output
    assert "$6$" not in done.output


def test_a_run_below_a_linked_directory_is_a_run(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after ``ln -s /scratch/runs runs``. A ``recipe.yaml`` that is itself a link is refused."""
    run_there = tmp_path / "scratch" / "runs" / "q"
    run_there.mkdir(parents=True)
    (run_there / "recipe.yaml").touch()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Path("runs").symlink_to(run_there.parent)
    check_link(Path("runs/q/recipe.yaml"))
    check_link(work / "runs/q/recipe.yaml")
    (run_there / "recipe.yaml").unlink()
    (run_there / "recipe.yaml").symlink_to(secret)
    with pytest.raises(RecipeError, match="is a link to"):
        check_link(Path("runs/q/recipe.yaml"))


def test_a_recipe_linked_within_the_project_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "mine"):
        Path(name).mkdir()
    Path("recipes/r.yaml").write_text("no_such_field: 1\n")
    Path("mine/r.yaml").symlink_to("../recipes/r.yaml")
    done = run("train", "mine/r.yaml")
    assert "no_such_field is not a known field" in done.output


def test_a_vocabulary_that_leads_elsewhere_is_not_read(secret: Path, tmp_path: Path) -> None:
    from wuneng.convert.rwkv_choice import choose_tokenizer
    from wuneng.convert.source import Located

    weights = tmp_path / "model" / "x.pth"
    weights.parent.mkdir()
    weights.touch()
    (weights.parent / "rwkv_vocab_v1.txt").symlink_to(secret)
    with pytest.raises(ModelError, match=r"rwkv_vocab_v1\.txt: a link to"):
        choose_tokenizer(Located("x.pth", weights, FAMILIES["rwkv7"], {}), None, 257)


def test_weights_that_lead_elsewhere_are_refused_by_link_as_by_name(
    model: Path, tmp_path: Path
) -> None:
    """As a single file, and as a shard."""
    from wuneng.convert.tensor_files import SafetensorsFiles
    from wuneng.model.pretrained import load_causal_model

    spoil_index(model, "model-00001-of-00001.safetensors")
    for name in ("model-00001-of-00001.safetensors", "model.safetensors"):
        (model / name).symlink_to("../outside.safetensors")
        for load in (load_causal_model, SafetensorsFiles.of_directory, check_index):
            with pytest.raises(ModelError, match=rf"{name}: a link to .*outside"):
                load(model)
        (model / name).unlink()
        (model / "model.safetensors.index.json").unlink(missing_ok=True)


def test_a_linked_recipe_of_a_run_is_not_quoted(
    secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``generate``, ``eval`` and all that look for a model in a run read its recipe too."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    secret.write_text("a: 1\nhush-value: 1\nhush-value: 2\n")
    Path("run").mkdir()
    Path("run/recipe.yaml").symlink_to(secret)
    for arguments in (
        ("generate", "run", "--prompt", "x"),
        ("eval", "run"),
        ("convert", "run", "there"),
        ("bench", "--model", "run"),
    ):
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        assert f"is a link to {secret}" in done.output.replace("\n", "")
        assert "hush" not in done.output
