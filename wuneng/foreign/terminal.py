"""The one console that tables and panels are printed through: nothing in a text is obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from wuneng.foreign.text import shown

__all__ = ["PlainConsole"]


class PlainConsole(Console):
    """rich's console, for which ``[/]`` is text and an escape sequence is shown.

    Args:
        file: where it writes; by default stdout, or stderr with ``stderr``.
        width: columns; by default the terminal's.
    """

    def __init__(
        self, *, file: TextIO | None = None, stderr: bool = False, width: int | None = None
    ) -> None:
        super().__init__(
            file=file, stderr=stderr, width=width, highlight=False, markup=False, emoji=False
        )

    def render_str(self, text: str, **options: object) -> Text:  # type: ignore[override]
        """Cells and titles of tables come through here, before their widths are measured."""
        return super().render_str(shown(text), **options)  # type: ignore[arg-type]

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Everything else that is printed, Text included; rich's own control codes stay."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(shown(segment.text), segment.style, segment.control)
