"""Packed rows: neither attention nor state nor shift crosses from one document to the next."""

import itertools

import pytest
import torch

from tests.model.small import VARIANTS, small_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_document_is_alone(variant):
    model = small_model(variant)
    ids = torch.randint(0, 61, (2, 40))
    cuts = ((0, 1, 18, 40), (0, 23, 40))
    documents = torch.zeros_like(ids)
    for row, edges in enumerate(cuts):
        for edge in edges[1:-1]:
            documents[row, edge:] += 1
    with torch.no_grad():
        packed = model(ids, document_ids=documents, use_cache=False).logits
        for row, edges in enumerate(cuts):
            for start, stop in itertools.pairwise(edges):
                alone = model(ids[row : row + 1, start:stop], use_cache=False).logits[0]
                torch.testing.assert_close(packed[row, start:stop], alone, rtol=1e-4, atol=2e-5)


def test_documents_from_restarting_positions():
    model = small_model("snapshots")
    ids = torch.randint(0, 61, (2, 30))
    positions = torch.stack([torch.cat([torch.arange(12), torch.arange(18)]), torch.arange(30)])
    documents = torch.stack([(torch.arange(30) >= 12).long(), torch.zeros(30).long()])
    with torch.no_grad():
        by_position = model(ids, position_ids=positions, use_cache=False).logits
        by_document = model(ids, document_ids=documents, use_cache=False).logits
    assert torch.equal(by_position, by_document)


def test_gradients_of_packed_rows_equal_those_of_single_documents():
    ids = torch.randint(0, 61, (1, 34))
    documents = (torch.arange(34) >= 15).long()[None]
    packed, single = small_model("snapshots"), small_model("snapshots")
    packed(ids, document_ids=documents, use_cache=False).logits.square().sum().backward()
    for part in (ids[:, :15], ids[:, 15:]):
        single(part, use_cache=False).logits.square().sum().backward()
    for (name, a), b in zip(packed.named_parameters(), single.parameters(), strict=True):
        scale = b.grad.abs().max()
        assert (a.grad - b.grad).abs().max() <= 1e-4 * scale + 1e-6, name
