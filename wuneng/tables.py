"""Tables for people, which never shorten a number, however narrow the terminal is.

A table that does not fit is laid out anew, in this order: names, headings and the parts of a cell
(``-0.10`` above its interval) go on a second line, unless several tables below each other, each
with the names of its rows, take fewer lines; a table of things compared turns, so that they are its
rows; columns that a file has as well are left out, with a word on which and where; and what is
still too wide is cut into several tables.

    table = Table("speed", [Column("arm", name=True), Column("ms"), Column("roof", spare=True)],
                  elsewhere="bench.csv")
    table.add_row("mha", "12.5", "40 %")
    console().print(table)

Nothing here imports torch, and rich only when something is printed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from wuneng.foreign.text import shown

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType

__all__ = ["Column", "Table", "console"]

_PIPE_WIDTH = 160
"""Of an output that is no terminal, where ``COLUMNS`` does not say otherwise."""

_LONG_WORD = 12
"""Longer words of names and headings may be broken after a hyphen, slash or underscore."""
_LONGEST_WORD = 20
"""Longer words of names and headings may be broken anywhere."""

# Where a cell of figures may go on in the next line: before its error or interval, after a comma,
# between words. Never inside a number, nor between a number and its unit.
_CELL_BREAK = re.compile(r"(?<=\S) (?=[(\[±]|\+ |to )|(?<=,) |(?<=[a-z,]) (?=[a-z])")
_PART_BREAK = re.compile(r"(?<=\S) (?=[(\[±])")
_WORD_BREAK = re.compile(r"(?<=[/_.@-])(?=[^\s/_.@-])")


@dataclass(frozen=True)
class Column:
    """One column; its cells are figures unless it is a ``name``."""

    heading: str
    name: bool = False
    """Says what a row is: aligned left, may be broken like text, repeated where a table is cut."""
    text: bool = False
    """Words rather than figures: aligned left, may be broken like text."""
    spare: bool = False
    """May be left out where there is no room, if the table says where else the figures are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heading", shown(self.heading))

    @property
    def words(self) -> bool:
        """Whether its cells may be broken like text."""
        return self.name or self.text


@dataclass
class Table:
    """Cells as they are printed. A renderable of rich: its layout depends on the console's width.

    Square brackets in cells are no markup.
    """

    title: str | None
    columns: list[Column]
    caption: str | None = None
    turns: bool = False
    """The columns after the first are things compared, which may become the rows instead."""
    elsewhere: str = ""
    """The file or command that has what is left out; empty: nothing is."""
    rows: list[tuple[str, ...]] = field(default_factory=list)
    sections: set[int] = field(default_factory=set)
    """Numbers of the rows that a line is drawn under."""

    def add_row(self, *cells: str) -> None:
        """One row; cells that are not given are empty."""
        assert len(cells) <= len(self.columns), "more cells than columns"
        cells = tuple(shown(cell) for cell in cells)  # before anything is measured
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def add_section(self) -> None:
        """A line under the last row."""
        self.sections.add(len(self.rows) - 1)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        from rich.text import Text

        pieces, left_out = self.laid_out(options.max_width)
        if self.title:
            yield Text(self.title, style="table.title", overflow="fold")
        for piece in pieces:
            yield piece.drawn()
        if left_out:
            names = ", ".join(column.heading.replace("\n", " ") for column in left_out)
            note = f"no room for {names}: in {self.elsewhere}"
            yield Text(note, style="table.caption", overflow="fold")
        if self.caption:
            yield Text(self.caption, style="table.caption", overflow="fold")

    def laid_out(self, width: int) -> tuple[list[_Piece], list[Column]]:
        """The tables to print below each other in ``width`` columns, and what they leave out."""
        if (piece := _fitted(self, width)) is not None:
            if self.turns or not piece.broken:
                return [piece], []
            # Two tables of whole figures are read more easily than one of figures in three lines.
            ways = ([piece], list(_cut(self, width, whole_cells=True)))
            return min(ways, key=_height), []
        table = self._turned() if self.turns else self
        left_out: list[Column] = []
        while (piece := _fitted(table, width)) is None:
            spare = [n for n, column in enumerate(table.columns) if column.spare]
            if not spare or not table.elsewhere:
                cuts = (list(_cut(table, width, whole)) for whole in (False, True))
                return min(cuts, key=_height), left_out
            left_out.insert(0, table.columns[spare[-1]])
            table = table._only([n for n in range(len(table.columns)) if n != spare[-1]])
        return [piece], left_out

    def _turned(self) -> Table:
        first, *compared = self.columns
        columns = [replace(first, name=True), *(Column(row[0]) for row in self.rows)]
        rows = [
            (column.heading, *(row[n] for row in self.rows))
            for n, column in enumerate(compared, start=1)
        ]
        return replace(self, columns=columns, rows=rows, sections=set(), turns=False)

    def _only(self, numbers: Sequence[int]) -> Table:
        columns = [self.columns[n] for n in numbers]
        return replace(
            self, columns=columns, rows=[tuple(r[n] for n in numbers) for r in self.rows]
        )


class _Piece(NamedTuple):
    """A table whose columns have their widths."""

    table: Table
    widths: list[int]
    fits: bool = True
    """Else a figure and the names of its row are too wide to stand beside each other."""

    @property
    def height(self) -> int:
        """Lines that it takes, without lines between sections."""
        rows = [_headings(self.table), *self.table.rows]
        return 3 + sum(
            max(len(lines) for lines in self._row(row, not n)) for n, row in enumerate(rows)
        )

    @property
    def broken(self) -> bool:
        """Whether a figure goes on in a second line."""
        figures = [n for n, column in enumerate(self.table.columns) if not column.words]
        return any(_length(row[n]) > self.widths[n] for row in self.table.rows for n in figures)

    def _row(self, row: tuple[str, ...], heading: bool = False) -> list[list[str]]:
        """The lines of every cell of a row."""
        columns = zip(row, self.table.columns, self.widths, strict=True)
        return [
            list(_lines(cell, width, words=heading or column.words))
            for cell, column, width in columns
        ]

    def _listed(self) -> Iterator[str]:
        """The names of each row, then a line for each of its figures."""
        for row in self.table.rows:
            cells = list(zip(self.table.columns, row, strict=True))
            yield ", ".join(cell for column, cell in cells if column.name and cell)
            for column, cell in cells:
                if cell and not column.name:
                    yield f"  {column.heading}: {cell}"

    def drawn(self) -> RenderableType:
        """The table with frames, every cell broken into lines here and nowhere else."""
        from rich.table import Table as RichTable
        from rich.text import Text

        def cells(row: tuple[str, ...], heading: bool = False) -> list[Text]:
            return [Text("\n".join(lines), overflow="fold") for lines in self._row(row, heading)]

        if not self.fits:
            return Text("\n".join(self._listed()), overflow="fold")
        drawn = RichTable()
        headings = cells(_headings(self.table), heading=True)
        for text, column, width in zip(headings, self.table.columns, self.widths, strict=True):
            drawn.add_column(text, justify="left" if column.words else "right", width=width)
        for number, row in enumerate(self.table.rows):
            drawn.add_row(*cells(row), end_section=number in self.table.sections)
        return drawn


def console(*, stderr: bool = False) -> Console:
    """The console that results are printed to: as wide as the terminal, or ``COLUMNS`` says."""
    from wuneng.foreign.terminal import PlainConsole

    plain = PlainConsole(stderr=stderr)
    if plain.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return plain
    return PlainConsole(stderr=stderr, width=_PIPE_WIDTH)


def _fitted(table: Table, width: int, whole_cells: bool = False) -> _Piece | None:
    """The table in one piece, as little broken as ``width`` allows; None where it does not fit."""
    room = width - _frame(len(table.columns))
    least, wanted = _least_widths(table, whole_cells), _natural_widths(table)
    if sum(least) > room:
        return None
    widths = [min(pair) for pair in zip(least, wanted, strict=True)]
    # One character for each column in turn: short headings are whole soon, the rest goes to long.
    while (spare := room - sum(widths)) > 0:
        growing = [n for n, size in enumerate(widths) if size < wanted[n]][:spare]
        if not growing:
            break
        for n in growing:
            widths[n] += 1
    return _Piece(table, widths)


def _height(pieces: list[_Piece]) -> int:
    return sum(piece.height for piece in pieces)


def _cut(table: Table, width: int, whole_cells: bool) -> Iterator[_Piece]:
    """Pieces with the row names and as many other columns as fit, at least one."""
    names = [n for n, column in enumerate(table.columns) if column.name]
    figures = [n for n, column in enumerate(table.columns) if not column.name]
    if any(_fitted(table._only([*names, n]), width) is None for n in figures):
        yield _Piece(table, _least_widths(table), fits=False)
        return
    while figures:
        taken, piece = 1, _fitted(table._only([*names, figures[0]]), width)
        while taken < len(figures):
            part = table._only([*names, *figures[: taken + 1]])
            if (wider := _fitted(part, width, whole_cells)) is None:
                break
            taken, piece = taken + 1, wider
        assert piece is not None
        yield piece
        figures = figures[taken:]


def _frame(columns: int) -> int:
    """Characters of a row that are no cell: a space on both sides, lines between and outside."""
    return 3 * columns + 1


def _natural_widths(table: Table) -> list[int]:
    lengths = [[_length(cell) for cell in row] for row in [_headings(table), *table.rows]]
    return [max(column) for column in zip(*lengths, strict=True)]


def _least_widths(table: Table, whole_cells: bool = False) -> list[int]:
    least = []
    for n, column in enumerate(table.columns):
        cells: list[int] = []
        for row in table.rows:
            whole = whole_cells and not column.words
            cells += [_length(row[n])] if whole else _unbroken(row[n], words=column.words)
        least.append(max([1, *_unbroken(column.heading, words=True), *cells]))
    return least


def _headings(table: Table) -> tuple[str, ...]:
    return tuple(column.heading for column in table.columns)


def _unbroken(text: str, *, words: bool) -> Iterator[int]:
    """Lengths of the parts of a cell that stay whole."""
    for piece, _ in _pieces(text, words=words):
        yield min(_length(piece), _LONGEST_WORD) if words else _length(piece)


def _lines(text: str, width: int, *, words: bool) -> Iterator[str]:
    """The lines of a cell, each at most ``width`` long where its parts allow."""
    if not words and _length(text) > width and len(parts := _PART_BREAK.split(text)) > 1:
        for part in parts:  # an interval is broken where it does not fit into a line of its own
            yield from _lines(part, width, words=False)
        return
    line = ""
    for piece, gap in _pieces(text, words=words):
        if line and _length(line + gap + piece) > width:
            yield line
            line, gap = "", ""
        line += gap + piece if line else piece
        while words and _length(line) > width:
            head = next(n for n in range(len(line), 0, -1) if n == 1 or _length(line[:n]) <= width)
            yield line[:head]
            line = line[head:]
    yield line


def _pieces(text: str, *, words: bool) -> Iterator[tuple[str, str]]:
    """The parts that a cell may be broken between, each with what joins it to the one before."""
    if not words:
        yield from ((piece, " ") for piece in _CELL_BREAK.split(text))
        return
    for word in text.split(" "):
        parts = _WORD_BREAK.split(word) if _length(word) > _LONG_WORD else [word]
        yield from ((part, "" if n else " ") for n, part in enumerate(parts))


def _length(text: str) -> int:
    """Columns of a terminal that a text takes; an East Asian character takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
