"""What others have made: their text on our terminal, their files, the code beside their models."""

from wuneng.foreign.code import code_reference, is_trusted, refusal, remote_code_trusted
from wuneng.foreign.files import check_index, check_link, regular_file_inside
from wuneng.foreign.lines import folded, print_line
from wuneng.foreign.text import shown, shown_line

__all__ = [
    "check_index",
    "check_link",
    "code_reference",
    "folded",
    "is_trusted",
    "print_line",
    "refusal",
    "regular_file_inside",
    "remote_code_trusted",
    "shown",
    "shown_line",
]
