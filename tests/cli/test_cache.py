"""wuneng cache: what is kept is listed with its size, and only what is ours is deleted."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wuneng.data.cache_directory import cache_root
from wuneng.errors import InputError
from wuneng.records.leftovers import being_written
from wuneng.records.user_cache import clear, entries, user_cache
from wuneng_cli.main import app

KEY = "0123456789" * 4


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache with one entry of every kind, and what is not ours beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("WUNENG_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "wuneng"
    for name, size in {
        f"tokens/{KEY}/tokens.bin": 1000,
        f"tokenizers/{KEY}/tokenizer.json": 100,
        f"tokens/.unfinished-{KEY}/tokens.bin": 10,
        "state_head_64_0123456789abcdef.so": 1,
        "tokens/thesis.tex": 7,
        "photos/a.png": 7,
        "notes.txt": 7,
    }.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * size)
    return place


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["cache", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def listed(*arguments: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(run(*arguments, "--json"))
    assert record["schema"] == 1
    return record


def test_what_is_kept_is_listed_with_its_size(root: Path) -> None:
    [place] = listed()["places"]
    assert place["path"] == str(root)
    assert place["bytes"] == 1111
    sizes = {entry["kind"]: entry["bytes"] for entry in place["entries"]}
    assert sizes == {"tokens": 1000, "tokenizers": 100, "leftovers": 10, "kernels": 1}
    text = run()
    assert f"{root}: 1.1 KiB" in text
    for kind in sizes:
        assert kind in text


def test_clear_deletes_ours_alone(root: Path) -> None:
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (root / "tokens" / KEY[::-1]).symlink_to(outside)
    text = run("clear")
    assert "4 deleted, 1.1 KiB" in text
    left = sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())
    assert left == ["notes.txt", "photos/a.png", "tokens/thesis.tex"]
    assert (outside / "kept").exists()
    assert listed()["places"][0]["entries"] == []


def test_one_kind_is_cleared(root: Path) -> None:
    run("clear", "--kind", "tokens")
    assert {entry.kind for entry in entries(root)} == {"tokenizers", "kernels", "leftovers"}
    with pytest.raises(InputError, match=r"got 'token'\. Did you mean 'tokens'"):
        clear(root, ["token"])
    result = CliRunner().invoke(app, ["cache", "clear", "--kind", "token"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_what_is_being_written_stays(root: Path) -> None:
    written = root / "tokens" / f".unfinished-{KEY}"
    with being_written(written):
        run("clear")
        assert (written / "tokens.bin").exists()
    run("clear")
    assert not written.exists()


def test_other_places(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, old = tmp_path / "named", tmp_path / ".wuneng-cache"
    for place in (named, old):
        (place / "tokens" / KEY).mkdir(parents=True)
        (place / "tokens" / KEY / "tokens.bin").write_bytes(b"xx")
    monkeypatch.setenv("WUNENG_CACHE", str(named))
    places = {place["path"]: place["note"] for place in listed()["places"]}
    assert places == {
        str(named): "$WUNENG_CACHE",
        str(root): "",
        str(old): "of an earlier version, not used any more",
    }
    assert [place["path"] for place in listed("--dir", str(named))["places"]] == [str(named)]
    run("clear", "--dir", str(named))
    assert not (named / "tokens").exists()
    assert (old / "tokens").exists()
    run("clear")
    assert not (old / "tokens").exists()


def test_builds_of_killed_compilers_are_leftovers(root: Path) -> None:
    killed, running = root / f".build-{'0' * 32}", root / f".build-{'1' * 32}"
    for place in (killed, running, root / ".build-mine"):
        place.mkdir()
    with being_written(running):
        assert killed in {entry.path for entry in entries(root) if entry.kind == "leftovers"}
        run("clear", "--kind", "leftovers")
        assert not killed.exists()
        assert running.exists()
        assert (root / ".build-mine").exists()


def test_a_home_that_nobody_knows_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WUNENG_CACHE", "~no-such-user/x")
    result = CliRunner().invoke(app, ["cache"])
    assert result.exit_code == 2
    assert "WUNENG_CACHE: expected a path, got '~no-such-user/x'" in result.stderr
    with pytest.raises(InputError, match=r"data\.cache_dir: .* no home directory is known"):
        cache_root("~no-such-user/x")


def test_without_a_home_the_cache_is_a_private_directory(
    root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = user_cache()
    assert place.parent == tmp_path
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert user_cache() == place
    place.chmod(0o777)
    with pytest.raises(InputError, match="not this user's alone"):
        user_cache()
    place.rmdir()
    place.symlink_to(root)
    with pytest.raises(InputError, match="not this user's alone"):
        user_cache()


def test_an_empty_place_is_no_error(tmp_path: Path) -> None:
    assert "0 B" in run("--dir", str(tmp_path / "nothing"))
    assert "0 deleted" in run("clear", "--dir", str(tmp_path / "nothing"))


def test_it_imports_nothing_heavy(root: Path) -> None:
    code = (
        "import sys\n"
        "from wuneng_cli.main import app\n"
        "app(['cache', 'clear'], standalone_mode=False)\n"
        "print('LOADED', sorted({'torch', 'numpy', 'transformers', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("LOADED []\n")
