"""What a model says of itself where it is shared (its card, its papers), and putting it there.

origin.py   what a source's directory says of where it is from, and under which licence
papers.py   licence texts and the source's own card, which travel with the weights
card.py     README.md: the metadata of Hugging Face's hub, and the text below it
upload.py   a finished directory to a repository on the hub
"""

from wuneng.hub.card import CARD, Card, Section, card_text, facts, table
from wuneng.hub.origin import Licence, Origin, origin_of
from wuneng.hub.papers import copy_papers

__all__ = [
    "CARD",
    "Card",
    "Licence",
    "Origin",
    "Section",
    "card_text",
    "copy_papers",
    "facts",
    "origin_of",
    "table",
]
