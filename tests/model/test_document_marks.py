"""Packed documents, however a call says them: in the default call too, and beside pads."""

import pytest
import torch

from tests.model.small import plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengCache
from wuneng.model.call_arguments import cache_of

SAID = ["document_ids", "seq_idx", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k"]


def packed_rows():
    """Two rows of two documents: ids, document ids, positions, and where the second starts."""
    ids = torch.randint(0, 61, (2, 30))
    cuts = torch.tensor([[12], [19]])
    index = torch.arange(30).expand(2, 30)
    documents = (index >= cuts).long()
    return ids, documents, index - cuts * documents, cuts.flatten().tolist()


def assert_alone(model, ids, got, pieces):
    """Each piece (row, start, stop) of ``got`` is what the model says of it alone."""
    for row, start, stop in pieces:
        own = ids[row : row + 1, start:stop]
        alone = plainly(model, lambda m, own=own: m(own, use_cache=False).logits)
        found = got[row : row + 1, start:stop]
        assert_as_exact(found, *alone, what=(row, start), floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("mask", [None, "all ones"])
@pytest.mark.parametrize("use_cache", [None, True, False])
@pytest.mark.parametrize("variant", ["default", "mha", "sliding", "pure-rwkv7"])
def test_documents_stay_apart_however_they_are_said(variant, use_cache, mask, said):
    model = small_model(variant)
    ids, documents, positions, cuts = packed_rows()
    ends = torch.tensor([0, cuts[0], 30, 30 + cuts[1], 60], dtype=torch.int32)
    ways = {"position_ids": positions, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
    given = ways.get(said, documents)
    arguments = {} if mask is None else {"attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        out = model(ids, use_cache=use_cache, **{said: given}, **arguments)
        assert torch.equal(out.logits, model(ids, document_ids=documents, use_cache=False).logits)
        assert cache_of(out) is None
        assert_alone(model, ids, out.logits, [(1, 0, cuts[1]), (1, cuts[1], 30)])


@pytest.mark.parametrize("said", ["document_ids", "position_ids"])
@pytest.mark.parametrize("variant", ["default", "mha-shift", "snapshots"])
def test_pads_beside_packed_documents(variant, said):
    model = small_model(variant)
    ids, documents, positions, cuts = packed_rows()
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    mask[1, -4:] = 0
    positions[0, :3] = 0
    positions[0, 3 : cuts[0]] = torch.arange(cuts[0] - 3)
    positions[1, -4:] = 0
    given = {"document_ids": documents, "position_ids": positions}[said]
    with torch.no_grad():
        got = model(ids, attention_mask=mask, **{said: given}).logits
        assert_alone(model, ids, got, [(0, 3, 12), (0, 12, 30), (1, 0, 19), (1, 19, 26)])


def test_a_pad_inside_a_packed_document_is_refused():
    model = small_model()
    ids, documents, positions, _ = packed_rows()
    mask = torch.ones_like(ids)
    mask[0, 5] = 0
    with pytest.raises(ValueError, match="document_ids: a packed document has a pad"):
        model(ids, attention_mask=mask, document_ids=documents)
    positions[0, 6:12] -= 1  # counted over the real tokens
    with pytest.raises(ValueError, match="restarting position_ids: a packed document has a pad"):
        model(ids, attention_mask=mask, position_ids=positions)


def test_padded_positions_are_not_documents():
    model = small_model()
    ids = torch.randint(0, 61, (3, 12))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[1, -3:] = 0
    mask[2, 4:6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
        assert cache_of(out) is not None
        assert_alone(model, ids, out.logits, [(0, 5, 12), (1, 0, 9)])
        real = ids[2:, mask[2].bool()]
        alone = plainly(model, lambda m: m(real, use_cache=False).logits)
        assert_as_exact(out.logits[2:, mask[2].bool()], *alone, floor=CHUNKED_FLOOR)


def test_documents_and_a_cache_are_refused():
    model = small_model()
    ids, documents, positions, _ = packed_rows()
    for given in ({"position_ids": positions}, {"document_ids": documents}):
        with pytest.raises(ValueError, match="cannot be combined with a cache"):
            model(ids, cache=WuNengCache(model.config), **given)


@pytest.mark.parametrize("name", ["document_ids", "position_ids"])
def test_ids_of_another_shape_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}: expected shape \[2, 30\]"):
        small_model()(torch.zeros(2, 30).long(), **{name: torch.zeros(2, 29).long()})


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k"])
@pytest.mark.parametrize(
    "ends", [[0, 7, 29], [3, 7, 30], [0, 20, 7, 30], [-1, 30], [30], [], [[0, 30]], [0.0, 30.0]]
)
def test_boundaries_of_another_batch_are_refused(ends, name):
    with pytest.raises(ValueError, match=f"{name}: expected boundaries from 0 to 30"):
        small_model()(torch.zeros(1, 30).long(), **{name: torch.tensor(ends)})


def test_a_document_that_goes_on_in_the_next_row_is_refused():
    with pytest.raises(ValueError, match=r"goes on from row 0 into the next; .* every 30 tokens"):
        small_model()(torch.zeros(2, 30).long(), cu_seq_lens_q=torch.tensor([0, 7, 60]))


def test_empty_documents_change_nothing():
    model = small_model()
    ids = torch.randint(0, 61, (1, 30))
    with torch.no_grad():
        expected = model(ids, cu_seq_lens_q=torch.tensor([0, 7, 30])).logits
        got = model(ids, cu_seq_lens_q=torch.tensor([0, 0, 7, 7, 30, 30])).logits
    assert torch.equal(got, expected)


def test_documents_said_twice_have_to_agree():
    model = small_model()
    ids, documents, _, cuts = packed_rows()
    ends = torch.tensor([0, cuts[0], 30, 30 + cuts[1], 60], dtype=torch.int32)
    with torch.no_grad():
        expected = model(ids, document_ids=documents).logits
        twice = {"seq_idx": documents, "cu_seq_lens_q": ends, "cu_seq_lens_k": ends}
        longest = {"max_length_q": 19, "max_length_k": 19}
        assert torch.equal(model(ids, **twice, **longest).logits, expected)
    others = torch.tensor([0, 4, 30, 60])
    for given in (
        {"document_ids": documents, "seq_idx": documents.flip(0)},
        {"seq_idx": documents, "cu_seq_lens_q": others},
        {"cu_seq_lens_q": ends, "cu_seq_lens_k": others},
    ):
        first, second = given
        with pytest.raises(ValueError, match=f"{first} and {second} start documents in different"):
            model(ids, **given)
    with pytest.raises(ValueError, match="max_length_q says nothing of where documents start"):
        model(ids, max_length_q=19)
    with pytest.raises(ValueError, match="document_ids: expected integers"):
        model(ids, document_ids=torch.full((2, 30), float("nan")))


def test_a_mask_of_pairs_is_not_lost_beside_positions():
    ids, documents, positions, _ = packed_rows()
    pairs = torch.ones(2, 1, 30, 30, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match=r"attention_mask: expected \[batch, tokens\]"):
        small_model()(ids, attention_mask=pairs, position_ids=positions)
    plain = small_model("mha")
    with pytest.raises(ValueError, match=r"packed documents: attention_mask: expected"):
        plain(ids, attention_mask=pairs, document_ids=documents)
    pairs[:, :, 20:, 5:9] = False
    with torch.no_grad():
        got = plain(ids, attention_mask=pairs, position_ids=positions, use_cache=False).logits
        unmasked = plain(ids, position_ids=positions, use_cache=False).logits
    assert (got[:, 20:] - unmasked[:, 20:]).abs().max() > 1e-3
