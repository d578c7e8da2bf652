"""Numbers are never shortened: every table of the product at 60, 80 and 120 columns."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.product_tables import LONG_ARM, TABLES
from wuneng.tables import Column, Table, console

FRAME = re.compile("[│┃]")
FIGURE = re.compile(r"[-+±<]?\d[\d,.e+-]*")


def printed(table: Table, width: int) -> str:
    shown = Console(width=width, file=io.StringIO(), highlight=False)
    shown.print(table)
    return shown.file.getvalue()  # type: ignore[attr-defined]


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("command", TABLES)
def test_every_table_of_the_product_is_whole(command: str, width: int) -> None:
    for table in TABLES[command]():
        check_whole(table, width)


def check_whole(table: Table, width: int) -> None:
    """Within the width, nothing shortened, every name and number there or said to be elsewhere."""
    text = printed(table, width)
    assert [line for line in text.splitlines() if cell_len(line) > width] == []
    assert "…" not in text
    read = without_spaces("".join([*columns_of(text), text]))
    numbers = FIGURE.findall("\n".join(line for line in text.splitlines() if line[:1] in "│ "))
    _, left_out = table.laid_out(width)
    for position, column in enumerate(table.columns):
        cells = [row[position] for row in table.rows]
        if column in left_out:
            note = " ".join(text.split("no room for", 1)[1].split())
            assert column.heading in note
            assert f"in {table.elsewhere}" in note
        elif column.words:
            assert [cell for cell in cells if without_spaces(cell) not in read] == []
        else:
            assert without_spaces(column.heading) in read
            missing = [n for cell in cells for n in FIGURE.findall(cell) if n not in numbers]
            assert not missing, (column.heading, missing)


def columns_of(text: str) -> list[str]:
    """The text of each column of each piece, read downwards."""
    columns: list[str] = []
    piece: list[str] = []
    for line in [*text.splitlines(), "└"]:
        if line[:1] in "│┃":
            parts = [part.strip() for part in FRAME.split(line)[1:-1]]
            piece = piece or [""] * len(parts)
            piece = [kept + part for kept, part in zip(piece, parts, strict=True)]
        elif line[:1] in "└":
            columns += piece
            piece = []
    return columns


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_paired_difference_and_its_interval_are_there(width: int) -> None:
    """What a terminal of 80 columns cut off: ``-0.13…``, ``p…``."""
    upgrade = next(iter(TABLES["train"]()))
    text = without_spaces("".join(columns_of(printed(upgrade, width))))
    assert "-0.1130(-0.1371to-0.0889)" in text
    evaluation = next(iter(TABLES["eval"]()))
    whole = printed(evaluation, 500)
    interval = re.search(r"\+0\.\d{3} \[\+\d\.\d{3}, \+\d\.\d{3}\]", whole)
    assert interval
    assert without_spaces(interval[0]) in without_spaces(
        "".join(columns_of(printed(evaluation, width)))
    )


@pytest.mark.parametrize("width", [60, 80, 120])
def test_an_evaluation_leaves_no_figure_to_the_file(width: int) -> None:
    """``n``, ``p`` and ``chance`` were left out at 80 columns: what a difference is worth."""
    for table in TABLES["eval"]():
        assert table.laid_out(width)[1] == []
        text = printed(table, width)
        assert [figure for figure in ("10,042", "0.250") if figure not in text] == []
        ps = [row[6] for row in table.rows if len(row) == 8]
        assert without_spaces("".join(ps)) in without_spaces("".join(columns_of(text)))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_panel_while_training_is_whole(width: int) -> None:
    from wuneng.train.display import PanelDisplay, Progress

    shown = Console(width=width, file=io.StringIO(), highlight=False)
    panel = PanelDisplay(shown)
    figures = {"validation": {"recall/accuracy@131072": 0.9876}, "logged": True}
    panel._progress = Progress(
        LONG_ARM, 123, 1_234_567, 2_345_678, 12.3456, 1.23e-4, 1234.5, 1.2e6, 1e6, **figures
    )
    panel._validation = figures["validation"]
    shown.print(panel._render())
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text
    assert all(cell_len(line) <= width for line in text.splitlines())
    read = without_spaces(text.replace("│", ""))
    parts = [f"{LONG_ARM}(seed123)", "1,234,567/2,345,678", "12.3456", "1.23e-04", "0.9876"]
    parts += ["gradientnorm1.23e+03", "1.2Mtokens/s", "277:46:40", "recall/accuracy@131072"]
    for part in parts:
        assert part in read


def three_arms() -> Table:
    table = Table("arms", [Column("", name=True), *map(Column, ("a", "b", "c"))], turns=True)
    for name in ("parameters", "training FLOPs", "tokens per second"):
        table.add_row(name, *(f"{10**n * 123:,}" for n in (3, 4, 5)))
    return table


def test_a_table_that_fits_is_as_it_was() -> None:
    text = printed(three_arms(), 80)
    assert "│ parameters        │ 123,000 │ 1,230,000 │ 12,300,000 │" in text


def test_a_table_of_arms_turns() -> None:
    """The names fold first; then arms become rows, so that their figures still meet."""
    assert "│ tokens per  │ 123,000 │" in printed(three_arms(), 50)
    ten = Table("arms", [Column("", name=True), *(Column(f"arm-{n}") for n in range(10))])
    ten.turns = True
    ten.add_row("parameters", *(f"{n}23,456,789" for n in range(1, 11)))
    text = printed(ten, 60)
    assert [line.split("│")[1].strip() for line in text.splitlines() if line[0] == "│"] == [
        f"arm-{n}" for n in range(10)
    ]


def test_figures_of_many_rows_stay_whole_in_two_tables() -> None:
    """One table of ``eval`` on 80 columns had each row in three lines, its intervals in halves."""
    columns = [
        Column("task", name=True),
        *map(Column, ("silenced ± se", "kept ± se", "difference")),
    ]
    table = Table(None, columns)
    table.add_row("recall@256", "0.494 ± 0.010", "0.950 ± 0.005", "-0.456 [-0.478, -0.435]")
    one = printed(table, 64)
    assert "-0.456 [-0.478, -0.435]" not in one
    assert one.count("recall@256") == 1, "of one row a second line is less than a second table"
    for _ in range(9):
        table.add_row("recall@256", "0.494 ± 0.010", "0.950 ± 0.005", "-0.456 [-0.478, -0.435]")
    two = printed(table, 64)
    for figure in ("0.494 ± 0.010", "0.950 ± 0.005", "-0.456 [-0.478, -0.435]"):
        assert two.count(figure) == 10
    assert two.count("recall@256") == 20


def test_an_interval_is_broken_only_where_it_has_to_be() -> None:
    table = Table(None, [Column("task", name=True), Column("x")])
    table.add_row("recall", "0.596 (-0.424 to -0.385)")
    assert "│ recall │              0.596 │" in printed(table, 31)
    assert "│        │ (-0.424 to -0.385) │" in printed(table, 31)
    assert "│        │   to -0.385) │" in printed(table, 25)


def test_spare_columns_go_last_first_and_are_named() -> None:
    columns = [Column("arm", name=True), Column("ms"), *(Column(c, spare=True) for c in "xyz")]
    table = Table(None, columns, elsewhere="bench.json")
    table.add_row("mha", *["1,234,567"] * 4)
    assert "no room for" not in printed(table, 80)
    assert "no room for z: in bench.json" in printed(table, 50)
    assert "no room for y, z: in bench.json" in printed(table, 40)
    table.elsewhere = ""
    assert printed(table, 40).count("1,234,567") == 4, "cut in two, nothing left out"


def test_narrower_than_a_number_it_is_still_whole() -> None:
    table = Table(None, [Column("arm", name=True), Column("tokens")])
    table.add_row(LONG_ARM, "123,456,789,012")
    assert "123,456,789,012" in printed(table, 18)


def test_a_number_keeps_its_unit_and_its_sign() -> None:
    table = Table(None, [Column("arm", name=True), Column("x")])
    table.add_row("mha", "34.6 % ± 1.2 %")
    table.add_row("rwkv7", "1.5 GiB + 2.0 KiB")
    lines = [line.split("│")[2].strip() for line in printed(table, 21).splitlines() if "│" in line]
    assert lines == ["34.6 %", "± 1.2 %", "1.5 GiB", "+ 2.0 KiB"]


def test_brackets_are_no_markup() -> None:
    table = Table("[/]", [Column("[red]", name=True), Column("n")], caption="[/b]")
    table.add_row("[/]", "[1, 2]")
    text = printed(table, 60)
    for shown in ("[/]", "[red]", "[1, 2]", "[/b]"):
        assert shown in text


def test_wide_characters_count_twice() -> None:
    table = Table(None, [Column("name", name=True), Column("n")])
    table.add_row("中文名字" * 10, "1,234")
    text = printed(table, 40)
    assert all(cell_len(line) <= 40 for line in text.splitlines())
    assert "中文名字" * 10 in "".join(columns_of(text))


def test_the_width_of_what_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert console().width == 160
    monkeypatch.setenv("COLUMNS", "60")
    assert console().width == 60
