"""A report on the made-up run, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.made_up import write_run
from wuneng.report import build_report, write_curves, write_report
from wuneng.report.records import read_records


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run with its report."""
    place = write_run(tmp_path_factory.mktemp("run") / "made-up")
    records = read_records(place)
    write_curves(records)
    write_report(build_report([records]), place)
    return place
