"""README.md of a converted model: metadata of the hub, licence, proof; nothing hostile in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.convert.sources import save_source
from wuneng.convert import Request, convert
from wuneng.errors import DamagedError
from wuneng.hub import origin_of
from wuneng.records import verify

CARD = """---
license: other
license_name: my-licence-2
license_link: https://example.org/licence
base_model:
- someone/base
- "not a repository <script>"
tags: [anything]
---
# My Llama
"""


def card_of(directory: Path) -> ModelCard:
    """As the hub's own library reads it."""
    return ModelCard.load(directory / "README.md")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    place = save_source(tmp_path / "my-llama")
    (place / "README.md").write_text(CARD)
    (place / "LICENSE.txt").write_text("Ask me.\n")
    return place


def test_the_card_of_an_upgraded_model(source: Path, tmp_path: Path) -> None:
    out = convert(Request(str(source), tmp_path / "out")).directory
    card = card_of(out)
    assert card.data.license == "other"
    assert card.data.license_name == "my-licence-2"
    assert card.data.license_link == "https://example.org/licence"
    assert card.data.base_model == "someone/base"
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == "wuneng"
    assert card.data.tags == ["wuneng", "rwkv7"]
    assert "| full forward | float32 | 96 | 0 |" in card.text
    assert "import wuneng" in card.text
    assert str(tmp_path) not in card.content
    assert (out / "LICENSE.txt").read_text() == "Ask me.\n"
    assert (out / "README-source.md").read_text() == CARD
    assert "README-source.md" in card.text


def test_the_same_conversion_has_the_same_card(source: Path, tmp_path: Path) -> None:
    cards = [
        (convert(Request(str(source), tmp_path / name)).directory / "README.md").read_bytes()
        for name in ("one", "other")
    ]
    assert cards[0] == cards[1]


def test_checksums_cover_the_card(source: Path, tmp_path: Path) -> None:
    out = convert(Request(str(source), tmp_path / "out", verify=False)).directory
    assert "**Not verified**" in (out / "README.md").read_text()
    verify(out)
    with (out / "README.md").open("a") as file:
        file.write("more")
    with pytest.raises(DamagedError, match=r"README\.md"):
        verify(out)


@pytest.mark.parametrize("stock", [True, False])
def test_the_card_of_an_export_keeps_both_earlier_ones(
    source: Path, tmp_path: Path, stock: bool
) -> None:
    first = convert(Request(str(source), tmp_path / "first", verify=False)).directory
    request = Request(str(first), tmp_path / "out", to="transformers", stock=stock, verify=False)
    out = convert(request).directory
    card = card_of(out)
    assert card.data.library_name == "transformers"
    assert card.data.license_name == "my-licence-2"
    assert card.data.base_model == "someone/base"
    assert (out / "README-source-2.md").read_text() == CARD
    assert (out / "README-source.md").read_bytes() == (first / "README.md").read_bytes()
    assert ("trust_remote_code=True" in card.text) is not stock
    assert card.data.tags == (None if stock else ["wuneng", "rwkv7", "custom_code"])


def test_the_card_of_a_distributed_checkpoint(source: Path, tmp_path: Path) -> None:
    first = convert(Request(str(source), tmp_path / "first", verify=False)).directory
    out = convert(Request(str(first), tmp_path / "dcp", to="dcp")).directory
    assert "Verified on the bits of every tensor" in card_of(out).text
    assert "wuneng convert PATH NEW" in card_of(out).text
    verify(out)
    back = convert(Request(str(out), tmp_path / "back", verify=False)).directory
    assert card_of(back).data.license_name == "my-licence-2"
    assert (back / "README-source-3.md").read_text() == CARD


HOSTILE = {
    "a licence with code": "---\nlicense: '<script>alert(1)</script>'\n---\n",
    "a licence with an escape sequence": '---\nlicense: "mit\\e]0;title\\a"\n---\n',
    "a link that is a script": "---\nlicense: other\nlicense_link: 'javascript:alert(1)'\n---\n",
    "base models of other types": "---\nbase_model: [{a: 1}, 3, null, '../..']\n---\n",
    "a list": "---\n- mit\n---\n",
    "no YAML": "---\n{[\n---\n",
    "a tag of Python": "---\nlicense: !!python/object/apply:os.system [true]\n---\n",
    "an alias that contains itself": "---\nlicense: &a [*a]\n---\n",
    "no text": "---\nlicense: \x00mit\n---\n",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_nothing_of_a_hostile_card_is_taken_over(what: str, tmp_path: Path) -> None:
    name = "evil\x1b]0;title\x07<img src=x>"
    place = tmp_path / name
    place.mkdir()
    (place / "README.md").write_text(HOSTILE[what])
    origin = origin_of(place, str(place))
    assert origin.licence.identifier == ("other" if "link" in what else None)
    assert origin.licence.link is None
    assert origin.base_models == ()


def test_a_hostile_name_is_shown_and_not_obeyed(tmp_path: Path) -> None:
    source = save_source(tmp_path / "evil\x1b]0;title\x07<img src=x>`|")
    out = convert(Request(str(source), tmp_path / "out", verify=False)).directory
    text = card_of(out).content
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "<img" not in text.replace("\\<img", "")
    assert r"evil\\x1b\]0;title\\x07\<img src=x\>\`\|" in text


def test_a_snapshot_of_the_hub_names_its_repository(tmp_path: Path) -> None:
    place = tmp_path / "models--some--model" / "snapshots" / "0f3a"
    place.mkdir(parents=True)
    (place / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: other/base\n---\n")
    (place / "rwkv7.pth").write_bytes(b"")
    for found in (origin_of(place, "some/model"), origin_of(place / "rwkv7.pth", str(place))):
        assert found.name == "some/model"
        assert found.base_models == ("some/model",)
        assert found.licence.identifier == "apache-2.0"


def test_a_licence_text_without_metadata_is_named(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("Ask me.\n")
    licence = origin_of(tmp_path, "x").licence
    assert (licence.identifier, licence.link) == ("other", "LICENSE")
