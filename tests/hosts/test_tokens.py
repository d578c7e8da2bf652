"""Commands on one run directory, and the processes that they start, tokenise its text once."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.distributed.test_resume import RECIPE
from wuneng.data import token_cache
from wuneng.data.encoding import Encoder
from wuneng.recipe import load_recipe
from wuneng.records import read_json
from wuneng.records.claimant import Claimant
from wuneng.train import Workers, run
from wuneng.train.display import PlainDisplay

HOSTS = ("a", "b")


def work(recipe: Path, out: Path, host: str, jobs: int) -> None:
    """`wuneng train RECIPE --out OUT --jobs JOBS` as on ``host``; notes what it tokenises, which it
    begins only once every host has asked for it."""
    place = recipe.parent
    encode, write, made_once = Encoder.encode, token_cache._write, token_cache.made_once

    def noting(self: Encoder, documents: Any) -> Any:
        with (place / "tokenised").open("a") as file:
            file.write("".join(f"{text}\n" for text in documents))
        return encode(self, documents)

    def coming(entry: Path, *rest: Any) -> None:
        (place / f"{host}.came").touch()
        made_once(entry, *rest)
        (place / f"{host}.found").write_text(str((entry / "tokens.bin").stat().st_ino))

    def late(*arguments: Any) -> None:
        while not all((place / f"{other}.came").exists() for other in HOSTS):
            time.sleep(0.02)
        time.sleep(0.3)
        write(*arguments)

    Encoder.encode = noting  # type: ignore[method-assign]
    token_cache.made_once, token_cache._write = coming, late  # type: ignore[assignment]
    workers = Workers(jobs, claimant=Claimant(host, host, 0.2, 50))
    with (place / f"{host}.log").open("w") as said:
        run(load_recipe(recipe), out, display=PlainDisplay(said), workers=workers)


@pytest.mark.parametrize("jobs", [1, 2])
def test_two_commands_share_what_one_has_tokenised(tmp_path: Path, jobs: int) -> None:
    """The processes that --jobs starts find it there: it is never written again."""
    texts = [" ".join(f"{n * k % 97}" for k in range(n % 11 + 2)) for n in range(1, 90)]
    text, recipe, out = tmp_path / "text.jsonl", tmp_path / "text.yaml", tmp_path / "run"
    text.write_text("".join(f'{{"text": "{t}"}}\n' for t in texts))
    data = {"kind": "text", "train": str(text), "cache_dir": str(tmp_path / "cache")}
    recipe.write_text(yaml.safe_dump({**RECIPE, "data": data, "arms": ["wuneng", "mha"]}))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.hosts.test_tokens"])
    told = [(recipe, out, host, jobs if host == "b" else 1) for host in HOSTS]
    processes = [context.Process(target=work, args=arguments) for arguments in told]
    for process in processes:
        process.start()
    for process, host in zip(processes, HOSTS, strict=True):
        process.join(240)
        assert process.exitcode == 0, (tmp_path / f"{host}.log").read_text()
    assert Counter((tmp_path / "tokenised").read_text().splitlines()) == Counter(texts)
    [entry] = (tmp_path / "cache" / "tokens").iterdir()
    same = {(tmp_path / f"{host}.found").read_text() for host in HOSTS}
    assert same == {str((entry / "tokens.bin").stat().st_ino)}
    assert sorted(read_json(out / "results.json")["arms"]) == ["mha", "wuneng"]
