"""``--push-to-hub`` against a local stand-in of the hub's calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from tests.convert.sources import save_source
from tests.hub.hub_server import TOKEN, Hub, standing_in
from wuneng.convert import Request, VerificationError, conversion, convert
from wuneng.errors import InputError, RunError
from wuneng.hub.upload import check_repository, upload
from wuneng.records import verify
from wuneng_cli.main import app

NAME = "me/my-model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with standing_in() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Stands for a finished directory."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    (place / "model.safetensors").write_bytes(b"weights")
    return place


def files_in(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir() if p.is_file()}


def test_a_conversion_is_uploaded_as_it_is(hub: Hub, tmp_path: Path) -> None:
    source, out = save_source(tmp_path / "source"), tmp_path / "out"
    line = ["convert", str(source), str(out), "--push-to-hub", NAME, "--private"]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 0, done.output
    assert f"{hub.address}/{NAME}/commit/" in done.output
    uploaded = hub.repositories[NAME]
    assert {n: d for n, d in uploaded.items() if n != ".gitattributes"} == files_in(out)
    assert hub.private[NAME]
    assert f'from_pretrained("{NAME}")' in uploaded["README.md"].decode()
    # What arrives there is checked as any export of ours.
    back = tmp_path / "back"
    back.mkdir()
    for name, data in uploaded.items():
        (back / name).write_bytes(data)
    assert verify(back)


def test_weights_of_an_earlier_upload_are_replaced(hub: Hub, model: Path) -> None:
    hub.repositories[NAME] = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"}
    hub.private[NAME] = False
    upload(model, NAME, private=False, progress=False)
    assert hub.repositories[NAME] == files_in(model) | {"notes.txt": b"kept"}
    assert len(hub.commits) == 1


def test_a_public_repository_is_not_taken_for_a_private_one(hub: Hub, model: Path) -> None:
    hub.repositories[NAME], hub.private[NAME] = {}, False
    with pytest.raises(RunError, match="is public, and --private was given"):
        upload(model, NAME, private=True, progress=False)
    assert hub.repositories[NAME] == {}


def test_what_fails_verification_is_not_uploaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(checks: object) -> None:
        raise VerificationError("the logits differ", [])

    monkeypatch.setattr(conversion, "require_all", differs)
    source = save_source(tmp_path / "source")
    with pytest.raises(VerificationError):
        convert(Request(str(source), tmp_path / "out", push_to_hub=NAME))
    assert hub.repositories == {}
    with pytest.raises(InputError, match="leave out --no-verify"):
        convert(Request(str(source), tmp_path / "out", push_to_hub=NAME, verify=False))


@pytest.mark.parametrize(
    ("part", "status", "said"),
    [
        ("repos/create", 403, "the token may not write there"),
        ("repos/create", 401, "the hub does not accept the token"),
        ("commit", 403, "the token may not write there"),
        ("preupload", 404, "404"),
    ],
)
def test_the_hub_refuses(hub: Hub, model: Path, part: str, status: int, said: str) -> None:
    hub.failing[part] = status
    with pytest.raises(RunError, match=said) as refused:
        upload(model, NAME, private=False, progress=False)
    assert f"hf upload {NAME} {model} ." in str(refused.value)
    assert str(refused.value).startswith(f"{model} is finished")
    assert TOKEN not in str(refused.value)


def test_without_a_token(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    source, out = save_source(tmp_path / "source"), tmp_path / "out"
    done = CliRunner().invoke(app, ["convert", str(source), str(out), "--push-to-hub", NAME])
    assert done.exit_code == 1
    assert "hf auth login" in done.output.replace("\n", " ")
    assert (out / "model.safetensors").is_file()
    assert hub.repositories == {}


def test_without_a_network(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"was not uploaded to me/my-model: .*refused"):
        upload(model, NAME, private=False, progress=False)


@pytest.mark.parametrize("name", ["model", "me/", "/model", "a/b/c", "me/a--b", "me/m\x1b[0m", ""])
def test_names_that_are_none_are_refused_before_any_work(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        check_repository(name)
    source, out = save_source(tmp_path / "source"), tmp_path / "out"
    done = CliRunner().invoke(app, ["convert", str(source), str(out), "--push-to-hub", name])
    assert done.exit_code == 2
    assert "\x1b" not in done.output
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"private": True}, "--private goes with"), ({"push_to_hub": NAME, "to": "dcp"}, "models")],
)
def test_options_that_contradict_each_other(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        convert(Request("nothing", tmp_path / "out", **changes))  # type: ignore[arg-type]
