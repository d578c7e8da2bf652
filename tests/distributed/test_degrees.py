"""What ``parallel:`` means for a number of processes, what launchers say, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_run import recipe
from wuneng.data.batch import IGNORED, Batch
from wuneng.distributed.degrees import Degrees, degrees_for
from wuneng.distributed.launched import Launched, launched
from wuneng.errors import InputError, RecipeError
from wuneng.recipe import Parallel
from wuneng.train.shares import check_rows, share_of


@pytest.mark.parametrize(
    ("fields", "size", "expected"),
    [
        ({}, 4, Degrees(replicate=4)),
        ({"shard": 4}, 4, Degrees(shard=4)),
        ({"shard": 2}, 4, Degrees(replicate=2, shard=2)),
        ({"replicate": 2}, 8, Degrees(replicate=2, shard=4)),
        ({"replicate": 1}, 8, Degrees(shard=8)),
        ({"replicate": 3, "shard": 2}, 6, Degrees(replicate=3, shard=2)),
        ({}, 1, Degrees()),
    ],
)
def test_auto_is_what_is_left(fields: dict[str, Any], size: int, expected: Degrees) -> None:
    found = degrees_for(Parallel(**fields), size)
    assert found == expected
    assert found.size == size == found.data


@pytest.mark.parametrize(
    ("state", "expected"),
    [(24, Degrees(replicate=8)), (26, Degrees(replicate=2, shard=4))],
    ids=["small: copies", "large: cut within a host"],
)
def test_auto_cuts_what_fills_a_device(state: int, expected: Degrees) -> None:
    assert degrees_for(Parallel(), 8, host_size=4, state_bytes=state, device_bytes=100) == expected


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"shard": 3}, 4, r"parallel.shard: expected a divisor .* \(4\), got 3"),
        ({"replicate": 8}, 4, r"parallel.replicate: expected a divisor .* \(4\), got 8"),
        ({"replicate": 2, "shard": 3}, 4, "replicate 2 x shard 3 x context 1 are 6 processes"),
        ({"shard": 2}, 1, r"parallel.shard: expected a divisor .* \(1\), got 2"),
    ],
)
def test_other_numbers_are_refused(fields: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        degrees_for(Parallel(**fields), size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("parallel.context=auto", "parallel.context: expected a number of processes from 1"),
        ("parallel.shard=0", "parallel.shard: expected auto or a number of processes from 1"),
        ("parallel.replicate=all", "parallel.replicate: expected auto or a number"),
        ("parallel.shards=2", "parallel.shards is not a known field. Did you mean 'shard'"),
        ("parallel.timeout=0", "parallel.timeout"),
    ],
)
def test_recipes_say_what_is_expected(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(tmp_path, change)


TORCHRUN = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "1",
}


def test_what_torchrun_says() -> None:
    assert launched(TORCHRUN) == Launched(rank=1, size=4, local_rank=1, local_size=2)
    assert launched({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"}).restarts == 2  # type: ignore[union-attr]
    assert launched({}) is launched({"WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": ""}, "RANK not set"),
        ({"RANK": "4"}, "RANK is 4: expected less than 4"),
        ({"LOCAL_RANK": "two"}, "LOCAL_RANK is 'two': expected a whole number"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR, MASTER_PORT not set"),
    ],
)
def test_what_torchrun_would_not_say(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        launched({**TORCHRUN, **changes})


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_shares_are_equally_long_and_every_row_is_scored_once(parts: int) -> None:
    rows = torch.arange(5)[:, None].expand(5, 3)
    batch = Batch(rows, rows.clone(), rows.int(), "text", 3)
    shares = [share_of(batch, number, parts) for number in range(parts)]
    assert {share.input_ids.shape for share in shares} == {(-(-5 // parts), 3)}
    scored = torch.cat([share.labels[(share.labels != IGNORED).all(1)] for share in shares])
    assert torch.equal(scored, rows)
    assert all(torch.equal(share.input_ids.int(), share.document_ids) for share in shares)


def test_no_process_is_without_a_row() -> None:
    check_rows(4, 4)
    with pytest.raises(InputError, match=r"training.batch_size: .* 4 parts .* got 3"):
        check_rows(3, 4)
