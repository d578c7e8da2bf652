"""README.md of a trained arm: the figures of its records, and the comparison once there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.train import small_upgrade
from tests.train.small_run import Stopped as StoppedHere
from tests.train.small_run import recipe, stop_in, train
from wuneng.convert import Request, convert
from wuneng.records import checksums, read_json, verify
from wuneng.records.checksums import rewrite_sealed
from wuneng.train import Results, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return train(tmp_path_factory.mktemp("cards"))[0]


def card_of(results: Results, arm: str) -> ModelCard:
    return ModelCard.load(results.directory / arm / "model" / "README.md")


def test_the_card_has_the_figures_of_the_records(finished: Results) -> None:
    ours, theirs = (finished.record["arms"][arm] for arm in ("wuneng", "mha"))
    card = card_of(finished, "wuneng")
    assert card.data.tags == ["wuneng", "rwkv7"]
    assert card.data.license is None
    for name, value in ours["quality"].items():
        error = ours["standard_error"][name]
        assert f"| {name} | {value:.4f} | {error:.4f} | {ours['examples'][name]} |" in card.text
    pair = finished.record["paired"][0]
    name, (low, high) = pair["figure"], pair["interval"]
    values = f"{ours['quality'][name]:.4f} | mha | {theirs['quality'][name]:.4f}"
    apart = f"{pair['difference']:+z.3f} ({low:+z.3f} to {high:+z.3f})"
    assert f"| {name} | {values} | {apart} | {pair['rows']} rows |" in card.text
    assert f"| tokens | {ours['tokens']:,} |" in card.text
    listed = read_json(finished.directory / "checksums.json")["files"]["recipe.yaml"]
    assert f"| {listed['sha256']} |" in card.text
    assert "whoever shares it has to choose one" in card.text
    assert verify(finished.directory / "wuneng" / "model")
    baseline = card_of(finished, "mha")
    assert baseline.data.tags == ["wuneng"]
    back = f"{-pair['difference']:+z.3f} ({-high:+z.3f} to {-low:+z.3f})"
    assert back in baseline.text


def test_a_run_that_was_stopped_ends_with_the_same_cards(finished: Results, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(StoppedHere):
        run(recipe(tmp_path), out, display=stop_in("mha", 3), runs_root=tmp_path)
    alone = (out / "wuneng" / "model" / "README.md").read_text()
    assert "## Compared" not in alone
    assert "## Figures" in alone
    results, _ = train(tmp_path, out=out)
    for arm in ("wuneng", "mha"):
        assert card_of(results, arm).content == card_of(finished, arm).content


def test_an_exported_arm_brings_its_comparison(finished: Results, tmp_path: Path) -> None:
    place = finished.directory / "wuneng"
    out = convert(Request(str(place), tmp_path / "out", to="transformers", verify=False)).directory
    compared = card_of(finished, "wuneng").text.partition("## Compared")[2].partition("##")[0]
    card = ModelCard.load(out / "README.md")
    assert compared in card.text
    assert "## Conversion" in card.text
    assert not (out / "README-source.md").exists()


def test_an_upgraded_arm_brings_the_papers_of_its_source(tmp_path: Path) -> None:
    small_upgrade.save_sources(tmp_path)
    source = tmp_path / "llama"
    said = "---\nlicense: mit\nbase_model: some/base\n---\n# Llama\n"
    (source / "README.md").write_text(said)
    (source / "LICENSE").write_text("MIT\n")
    arms = {"wuneng": {}, "source": small_upgrade.RECIPE["arms"]["source"]}
    whole = {**small_upgrade.RECIPE, "arms": arms}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_upgrade, "RECIPE", whole)
        results, _ = small_upgrade.train(tmp_path, tmp_path / "run", "training.steps=1")
    for arm in arms:
        place = results.directory / arm / "model"
        assert (place / "README-source.md").read_text() == said
        assert (place / "LICENSE").read_text() == "MIT\n"
        card = card_of(results, arm)
        assert card.data.license == "mit"
        assert card.data.base_model == "some/base"
        assert str(tmp_path) not in card.content
        assert "## Compared" in card.text
        assert verify(place)
    assert card_of(results, "wuneng").data.base_model_relation == "finetune"
    assert "untrained" in card_of(results, "source").text
    # An arm that starts from a trained arm keeps that arm's card as well.
    start = results.directory / "wuneng"
    change = (f"init_from={start}", "training.steps=1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_upgrade, "RECIPE", {**whole, "arms": {"wuneng": {}}, "model": {}})
        again, _ = small_upgrade.train(tmp_path, tmp_path / "again", *change)
    model = again.directory / "wuneng" / "model"
    assert (model / "README-source.md").read_bytes() == (start / "model/README.md").read_bytes()
    assert (model / "README-source-2.md").read_text() == said
    assert card_of(again, "wuneng").data.license == "mit"


def test_a_kill_while_a_card_is_rewritten_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("old")
    (tmp_path / "weights").write_text("w")
    real = checksums.write_text_atomic
    for before in range(3):
        (tmp_path / "README.md").write_text("old")
        checksums.seal_directory(tmp_path)
        left = [before]

        def killed(path: Path, text: str, left: list[int] = left) -> Any:
            if not left[0]:
                raise StoppedHere
            left[0] -= 1
            real(path, text)

        monkeypatch.setattr(checksums, "write_text_atomic", killed)
        with pytest.raises(StoppedHere):
            rewrite_sealed(tmp_path, "README.md", "new")
        assert verify(tmp_path)
        monkeypatch.setattr(checksums, "write_text_atomic", real)
        assert rewrite_sealed(tmp_path, "README.md", "new")
        assert (tmp_path / "README.md").read_text() == "new"
        assert verify(tmp_path)
        assert "README.md" in read_json(tmp_path / "checksums.json")["files"]
    assert not rewrite_sealed(tmp_path, "README.md", "new")


def test_a_card_that_somebody_edited_is_theirs(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("old")
    checksums.seal_directory(tmp_path)
    card.write_text("mine")
    assert not rewrite_sealed(tmp_path, "README.md", "new")
    (tmp_path / "checksums.json").unlink()
    assert not rewrite_sealed(tmp_path, "README.md", "new")
    assert card.read_text() == "mine"
