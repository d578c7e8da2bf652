"""Figures as files."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from wuneng.pictures.panels import drawing
from wuneng.records import disk_errors, write_bytes_atomic

__all__ = ["write_figures"]

_FORMATS = ("svg", "png")


def write_figures(make: Callable[[], Mapping[str, Any | None]], directory: Path) -> list[Path]:
    """Write figures as SVG and PNG; returns the PNGs' paths.

    Args:
        make: called where one may draw: figures by the names of their files, None for what is not
            to be there any more.

    Raises:
        DiskError: the disk is full or refuses.
    """
    written = []
    with drawing():
        from matplotlib import pyplot

        for name, figure in make().items():
            for suffix in _FORMATS:
                path = directory / f"{name}.{suffix}"
                if figure is None:
                    with disk_errors(path):
                        path.unlink(missing_ok=True)
                else:
                    drawn = io.BytesIO()
                    figure.savefig(drawn, format=suffix, dpi=150)
                    write_bytes_atomic(path, drawn.getvalue())
            if figure is not None:
                written.append(directory / f"{name}.png")
                pyplot.close(figure)
    return written
