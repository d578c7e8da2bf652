"""What is read in one order, shuffled block by block: a block is a function of where it begins, so
a resumed run reads it again and goes on inside it. (A buffer that rows flow through would lose what
is in it.)"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, TypeVar

from wuneng.data.streamed import Position, StreamedDataset
from wuneng.data.text_batches import epoch_order

__all__ = ["ShuffledStream", "shuffled_blocks"]

Place = TypeVar("Place")


def shuffled_blocks(
    read: Iterator[tuple[str, Place]],
    begins: Place,
    used: int,
    size: int,
    order: Callable[[Place, int], Any],
) -> Iterator[tuple[str, Place, int]]:
    """The texts of ``read``, in blocks of ``size``; with each where its block begins and how many
    of it are used.

    Args:
        read: from ``begins`` on, each text with the place behind it.
        used: texts of the first block that are left out.
        order: of so many texts of the block that begins there.
    """
    while block := list(islice(read, size)):
        for number in order(begins, len(block))[used:]:
            used += 1
            yield block[int(number)][0], begins, used
        begins, used = block[-1][1], 0


class ShuffledStream(StreamedDataset):
    """A streamed data set whose documents are shuffled in blocks, anew in every pass.

    Args:
        size: documents of a block.
    """

    def __init__(self, *source: Any, size: int, seed: int) -> None:
        super().__init__(*source)
        self.order = f"documents shuffled in blocks of {size:,}"
        self._size, self._seed = size, seed

    def documents_from(self, position: Position) -> Iterator[tuple[str, Position]]:
        """The documents from ``position`` on, each with the position right behind it."""
        turn, begins = int(position.get("pass", 0)), position.get("begins", {"rows": 0})

        def order(place: Position, number: int) -> Any:
            return epoch_order(number, self._seed ^ (place["rows"] << 20), turn)

        read = super().documents_from(begins)
        used = int(position.get("used", 0))
        for text, place, done in shuffled_blocks(read, begins, used, self._size, order):
            rows = place["rows"] + done  # more than none: the pass has begun
            yield text, {"rows": rows, "pass": turn, "begins": place, "used": done}
