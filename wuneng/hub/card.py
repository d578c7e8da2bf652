"""README.md of a model: metadata as Hugging Face's hub reads them, and what a person wants to know.

Nothing in it depends on the machine, the place or the time: the same model has the same card.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.foreign.markdown import code_span, markdown_text
from wuneng.hub.origin import Licence, Origin
from wuneng.hub.papers import kept_cards, licence_files

__all__ = ["CARD", "Card", "Section", "card_text", "facts", "table"]

CARD = "README.md"
_CODE = "modeling_wuneng.py"
_LAYOUT = (
    ("layers", "num_hidden_layers"),
    ("hidden size", "hidden_size"),
    ("attention heads a layer", "num_attention_heads"),
    ("state heads a layer", "num_state_heads"),
    ("kind of the state heads", "state_kind"),
    ("middle heads", "cross_head"),
    ("vocabulary", "vocab_size"),
)


@dataclass(frozen=True)
class Section:
    """A heading and the Markdown below it."""

    heading: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """What goes onto a card.

    Attributes:
        title: of the page.
        summary: one paragraph, plain text.
        config: the model's configuration, as config.json has it.
        origins: what it was made of, the model itself first.
        sections: what else there is to tell.
        repository: where it will be on the hub, if that is known.
        trained: whether training changed it: the hub calls it a fine-tuned model then.
    """

    title: str
    summary: str
    config: Mapping[str, Any]
    origins: Sequence[Origin] = ()
    sections: Sequence[Section] = ()
    repository: str | None = None
    trained: bool = False


def card_text(card: Card, directory: Path) -> str:
    """The card of the model in ``directory``, which holds everything else already."""
    lines = ["---", metadata(card, directory), "---", ""]
    lines += [f"# {markdown_text(card.repository or card.title)}", ""]
    lines += [markdown_text(card.summary), ""]
    sections = [_layout(card.config), _loading(card, directory), *card.sections]
    for section in (*sections, _licence(card, directory)):
        lines += [f"## {section.heading}", "", *section.lines, ""]
    return "\n".join(lines)


def metadata(card: Card, directory: Path) -> str:
    """The YAML that the hub reads, without the lines around it."""
    from huggingface_hub import ModelCardData

    licence = _licence_of(card)
    ours = card.config.get("model_type") == "wuneng"
    code = (directory / _CODE).is_file()
    tags = ["wuneng", *_heads(card.config)] if ours else []
    bases = list(dict.fromkeys(base for origin in card.origins for base in origin.base_models))
    data = ModelCardData(
        license=licence.identifier,
        license_name=licence.name,
        license_link=licence.link,
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="finetune" if bases and card.trained else None,
        pipeline_tag="text-generation",
        library_name="wuneng" if ours and not code else "transformers",
        tags=[*tags, "custom_code"] if code else tags or None,
    )
    text: str = data.to_yaml()
    return text


def facts(rows: Iterable[tuple[str, object]]) -> list[str]:
    """A table of two columns without a heading; what is None is left out."""
    return table(("", ""), [(name, value) for name, value in rows if value is not None])


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table of Markdown; cells are plain text."""
    lines = [headings, *rows]
    written = [f"| {' | '.join(markdown_text(cell) for cell in line)} |" for line in lines]
    return [written[0], f"|{'---|' * len(headings)}", *written[1:]]


def _heads(config: Mapping[str, Any]) -> list[str]:
    kind = config.get("state_kind")
    return [kind.replace("_", "-")] if config.get("num_state_heads") and kind else []


def _layout(config: Mapping[str, Any]) -> Section:
    silent = {"state_kind", "cross_head"} if not config.get("num_state_heads") else set()
    rows = [(name, config.get(key)) for name, key in _LAYOUT if key not in silent]
    return Section("Architecture", facts((("type", config.get("model_type")), *rows)))


def _loading(card: Card, directory: Path) -> Section:
    place = card.repository or "PATH"
    if not (directory / "config.json").is_file() or (directory / ".metadata").is_file():
        text = "A distributed checkpoint of torch; `wuneng convert PATH NEW` makes a model of it."
        return Section("Loading", [text])
    code, ours = (directory / _CODE).is_file(), card.config.get("model_type") == "wuneng"
    lines = ["```python"]
    if ours and not code:
        lines.append("import wuneng  # makes the architecture known to transformers")
    splits = (directory / "tokenizer_config.json").is_file()
    names = "AutoModelForCausalLM, AutoTokenizer" if splits else "AutoModelForCausalLM"
    trust = ", trust_remote_code=True" if code else ""
    lines += [f"from transformers import {names}", ""]
    lines.append(f'model = AutoModelForCausalLM.from_pretrained("{place}"{trust})')
    if splits:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{place}")')
    lines.append("```")
    if code:
        needs = "Its modelling code is in this directory; it needs torch and transformers 5.17 or"
        lines += ["", f"{needs} newer, nothing else."]
    return Section("Loading", lines)


def _licence(card: Card, directory: Path) -> Section:
    said = _licence_of(card)
    lines = []
    for origin in card.origins:
        told = origin.licence.identifier or "not stated there"
        named = f" ({origin.licence.name})" if origin.licence.name else ""
        lines.append(f"- Made of {markdown_text(origin.name)}, whose licence is: {told}{named}.")
    if said.identifier is None:
        lines.append("- No licence is stated for this model; whoever shares it has to choose one.")
    for names, what in (
        (licence_files(directory), "Licence texts of the source"),
        (kept_cards(directory), "The source's own card"),
    ):
        if names:
            lines.append(f"- {what}: {', '.join(map(code_span, names))}.")
    return Section("Source and licence", lines)


def _licence_of(card: Card) -> Licence:
    """The first origin's: weights are under the terms that they came with."""
    return card.origins[0].licence if card.origins else Licence()
