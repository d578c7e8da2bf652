"""Text that is read while training: of several processes one reads and tokenises, for all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.distributed import streams
from tests.distributed.pool import Pool, pool
from tests.distributed.test_resume import RECIPE, metrics
from wuneng.distributed.processes import ALONE
from wuneng.errors import DataError, MissingProcess

BEAT = 0.25


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(4) as started:
        yield started


def recipe(place: Path, *, mixed: bool = False) -> Path:
    """Documents of many lengths behind a URL, more than training needs; perhaps half of it from a
    file that is tokenised before."""
    place.mkdir()
    for name in ("stream", "stored"):
        documents = [" ".join(f"{n * k % 97}" for k in range(n % 11 + 2)) for n in range(1, 400)]
        lines = "".join(
            f'{{"text": "{name} {number}: {d}"}}\n' for number, d in enumerate(documents)
        )
        (place / f"{name}.jsonl").write_text(lines)
    url = f"file://{place / 'stream.jsonl'}"
    train = [{"path": url}, {"path": str(place / "stored.jsonl")}] if mixed else url
    data = {"kind": "text", "train": train, "cache_dir": str(place / "cache")}
    path = place / "text.yaml"
    training = {**RECIPE["training"], "batch_size": 12, "sequence_length": 64}
    path.write_text(yaml.safe_dump({**RECIPE, "training": training, "data": data}))
    return path


def test_a_tokenizer_is_learned_once(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    first, second = processes.run(2, streams.counted, path, ("data.tokenizer={train_bpe: 280}",))
    assert first[0][0] == second[0][0] == "finished"
    assert not second[1]
    assert second[2] == 0
    ids = [yaml.safe_load(row) for rows in second[0][1] for row in rows[1]]
    assert max(map(max, ids)) > 257


@pytest.mark.parametrize("mixed", [False, True], ids=["stream", "mixture"])
def test_every_document_is_read_and_tokenised_once(
    processes: Pool, tmp_path: Path, mixed: bool
) -> None:
    path, before = recipe(tmp_path / "once", mixed=mixed), recipe(tmp_path / "each", mixed=mixed)
    first, second = processes.run(2, streams.counted, path)
    assert first[0][0] == second[0][0] == "finished"
    own, other = Counter(first[1]), Counter(second[1])
    assert sum(own.values()) > 100
    assert set(own.values()) == {1}, "each once"
    assert not other
    assert second[2] == 0, "nor fetched"
    # As it was when every process read everything: the same rows, the same bits.
    each = processes.run(2, streams.plain, before)
    assert sum(len(texts) for _, texts, _ in each) >= 2 * sum(own.values()) - len(own)
    assert [outcome for outcome, _, _ in each] == [first[0], second[0]]
    names = ("step", "tokens", "loss", "grad_norm")
    found, expected = ([[row[n] for n in names] for row in metrics(p)] for p in (path, before))
    assert found == expected


@pytest.mark.parametrize("mixed", [False, True], ids=["stream", "mixture"])
def test_two_one_four(processes: Pool, tmp_path: Path, mixed: bool) -> None:
    """Stopped with batches made ahead, and continued by another number of processes."""
    path = recipe(tmp_path / "changing", mixed=mixed)
    undisturbed = recipe(tmp_path / "undisturbed", mixed=mixed)
    begun = processes.run(2, streams.counted, path, (), (3, 1))
    assert all("saved at step 3 of 9" in how for (how, _), _, _ in begun)
    went_on = [streams.counted(ALONE, path, (), (3, 0))]
    ended = processes.run(4, streams.counted, path)
    assert {how for (how, _), _, _ in ended} == {"finished"}
    (_, whole), _, _ = streams.counted(ALONE, undisturbed)
    for before, sessions in ((0, begun), (3, went_on), (6, ended)):
        for number in range(3):
            rows = [row for (_, seen), _, _ in sessions for row in seen[number][1]]
            assert Counter(rows) == Counter(whole[before + number][1])


def test_the_one_that_reads_is_killed(tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    with pool(2) as processes:
        processes.begin(2, streams.dying, path, 330, beat=BEAT, seconds=1200)
        found = processes.end(2)
    assert isinstance(found[0], EOFError)
    assert isinstance(found[1], MissingProcess)
    assert "process 0 of 2 was killed or does not run any more" in str(found[1])
    assert streams.counted(ALONE, path)[0][0] == "finished", "from what was saved"


def test_what_the_reader_finds_wrong_is_said_by_all(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    file = tmp_path / "run" / "stream.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:380], "garbage"]))
    processes.begin(2, streams.counted, path, beat=BEAT, seconds=60)
    found = processes.end(2)
    for error in found:
        assert isinstance(error, DataError), error
    assert str(found[0]) == str(found[1])
    assert "line 381" in str(found[0])
