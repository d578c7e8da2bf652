"""The two commands that a newcomer copies, and the CI script that runs the second as written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

FAKE_README = """# Title

```sh
echo first >> ran
```

```python
print("not a shell block")
```

```sh
echo second >> ran && mkdir -p .venv/bin && cp tool .venv/bin/ruff && cp tool .venv/bin/mypy
```

```sh
echo third >> ran
```
"""


def test_the_first_two_blocks_are_one_line_each(repository: Path) -> None:
    blocks = BLOCK.findall((repository / "README.md").read_text(encoding="utf-8"))
    assert [block.count("\n") for block in blocks[:2]] == [1, 1]
    quickstart, tests = blocks[:2]
    assert "wuneng train recipes/quickstart.yaml" in quickstart
    assert "'.[dev]'" in tests
    assert "pytest" in tests


def _run(repository: Path, place: Path, readme: str, tool: str) -> subprocess.CompletedProcess[str]:
    (place / ".ci").mkdir()
    shutil.copy(repository / ".ci" / "run", place / ".ci" / "run")
    for name in ("optional", "lowest"):
        (place / ".ci" / name).write_text(f"echo {name} >> ran\n", encoding="utf-8")
    (place / "README.md").write_text(readme, encoding="utf-8")
    (place / "tool").write_text(tool, encoding="utf-8")
    (place / "tool").chmod(0o755)
    return subprocess.run(
        [place / ".ci" / "run"], capture_output=True, text=True, cwd=place.parent, check=False
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ci_runs_the_second_block_then_the_checks(repository: Path, tmp_path: Path) -> None:
    tool = '#!/bin/sh\necho "${0##*/} $*" >> ran\n'
    done = _run(repository, tmp_path, FAKE_README, tool)
    assert done.returncode == 0, done.stderr
    ran = (tmp_path / "ran").read_text().splitlines()
    assert ran == ["second", "ruff check .", "ruff format --check .", "mypy ", "optional", "lowest"]


def test_lowest_versions_are_those_of_the_project(repository: Path) -> None:
    script = repository / ".ci" / "lowest_versions.py"
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    pins = dict(line.split("==") for line in out.stdout.splitlines())
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    bounded = {
        re.split(r"[\[<>=]", requirement)[0]: requirement
        for requirement in project["dependencies"]
        if ">=" in requirement
    }
    assert set(pins) == set(bounded) - {"torch"} | {"peft"}
    for name, version in pins.items():
        assert f">={version}" in bounded.get(name, "peft>=" + version)


@pytest.mark.parametrize("name", ["transformers", "lm-eval", "torch"])
def test_libraries_whose_internals_we_touch_have_an_upper_bound(
    repository: Path, name: str
) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    found = [r for r in project["dependencies"] if re.split(r"[\[<>=]", r)[0] == name]
    assert len(found) == 1
    assert ",<" in found[0]
    assert found[0].split(",<")[1] not in ("6", "1", "3")  # a whole major version is no bound


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("readme", "tool"),
    [
        (FAKE_README, "#!/bin/sh\nexit 3\n"),
        (FAKE_README.replace("echo second", "false"), "#!/bin/sh\n"),
        ("# no blocks\n", "#!/bin/sh\n"),
    ],
    ids=["a failing check", "a failing test run", "no block"],
)
def test_ci_fails_when_anything_does(
    repository: Path, tmp_path: Path, readme: str, tool: str
) -> None:
    assert _run(repository, tmp_path, readme, tool).returncode != 0
