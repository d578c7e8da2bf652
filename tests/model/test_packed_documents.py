"""Packed rows: neither attention nor state nor shift crosses from one document to the next."""

import itertools

import pytest
import torch

from tests.model.small import VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact


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
                own = ids[row : row + 1, start:stop]
                alone = plainly(model, lambda m, own=own: m(own, use_cache=False).logits)
                found = packed[row : row + 1, start:stop]
                assert_as_exact(found, *alone, what=(row, start), floor=CHUNKED_FLOOR)


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
    packed = small_model("snapshots")
    packed(ids, document_ids=documents, use_cache=False).logits.square().sum().backward()

    def one_by_one(single):
        single.zero_grad()
        for part in (ids[:, :15], ids[:, 15:]):
            single(part, use_cache=False).logits.square().sum().backward()
        return {name: p.grad for name, p in single.named_parameters()}

    found = {name: p.grad for name, p in packed.named_parameters()}
    alone = plainly(small_model("snapshots"), one_by_one)
    assert_as_exact(found, *alone, floor=CHUNKED_FLOOR)
