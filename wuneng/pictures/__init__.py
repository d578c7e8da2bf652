"""One style for every picture that is drawn of a record; matplotlib is imported when one is."""

from wuneng.pictures.files import write_figures
from wuneng.pictures.panels import drawing, head, legend_below, panels, plain_numbers
from wuneng.pictures.styles import GREY, styles_of

__all__ = [
    "GREY",
    "drawing",
    "head",
    "legend_below",
    "panels",
    "plain_numbers",
    "styles_of",
    "write_figures",
]
