"""Models and requests that shared scoring is tried on, and the plain calls that it must equal."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.nn.functional as F

from tests.model.small import plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.evaluate.scoring import CallLimits

Request = tuple[list[int], list[int]]


MAX_LENGTH = 96


AUTO = CallLimits.on(torch.device("cpu"), None)


#: Few rows and tokens a call, and a pool that holds one batch.
TIGHT = CallLimits(rows=3, tokens=100, call_price=4, cache_bytes=1)


OWN = {"state_key_source": "own", "state_value_source": "own"}


RWKV7 = {
    **OWN,
    "token_shift": "pre",
    "state_value_residual": True,
    "state_output_gate": True,
}


VARIANTS: dict[str, dict[str, Any]] = {
    "mha": {"num_state_heads": 0},
    "mha, shifted": {"num_state_heads": 0, "attention_token_shift": True},
    "wuneng": {},
    "grouped queries": {"num_attention_heads": 4, "head_dim": 16, "qk_norm": True},
    "snapshots": {"snapshots": 2, "snapshot_every": 16},
    "sliding window": {"sliding_window": 8, "sliding_window_layers": [0]},
    "sliding everywhere": {"sliding_window": 20, "snapshots": 1, "snapshot_every": 16},
    "RWKV-7 beside attention": RWKV7,
    "no shift": {**OWN, "token_shift": "none"},
    "pure RWKV-7": {
        **RWKV7,
        "num_attention_heads": 0,
        "num_key_value_heads": 0,
        "head_dim": 16,
        "ffn": "rwkv7",
        "norm": "layernorm",
        "state_a_max": 2.0,
    },
    "state in one layer": {"state_layers": [1], "ffn": "rwkv7"},
}


def requests(seed: int = 0) -> list[Request]:
    """Questions with several answers, of every awkward kind."""
    chosen = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return chosen.choices(range(250), k=chosen.randint(low, high))

    found: list[Request] = []
    for _ in range(6):  # HellaSwag: one question, longer answers
        question = tokens(17, 60)
        found += [(question, tokens(1, 30)) for _ in range(4)]
    question, beginning = tokens(30, 40), tokens(3, 6)
    found += [(question, beginning + tokens(0, 5)) for _ in range(3)]  # answers that begin alike
    found += [(question, beginning)]
    question = tokens(20, 30)
    found += [(question, [token]) for token in (1, 2, 3, 2)]  # one token each, and one twice
    common = tokens(40, 40)
    found += [(common + tokens(5, 20), tokens(1, 3)) for _ in range(5)]  # solved examples
    found += [(common[: 20 + i], common[20 + i : 30]) for i in range(3)]  # split at three places
    found += [(tokens(1, 50), tokens(1, 9)) for _ in range(5)]  # LAMBADA: nothing in common
    question = tokens(100, 120)
    found += [(question, tokens(1, 40)) for _ in range(3)]  # cut from the left
    found += [(tokens(90, 90), tokens(7, 7)), (tokens(5, 5), tokens(MAX_LENGTH, MAX_LENGTH))]
    found += [([256], tokens(1, 20)) for _ in range(3)]  # no question
    chosen.shuffle(found)
    return found


def greedy_requests(model: Any) -> list[Request]:
    """Answers that greedy decoding gives, and the same with their last token changed."""
    found = []
    for question in ([5] * 20, [7, 8, 9] * 8):
        ids = list(question)
        for _ in range(3):
            ids.append(int(logits(model, ids)[-1].argmax()))
        found += [(question, ids[-3:]), (question, [*ids[-3:-1], (ids[-1] + 1) % 250])]
    return found


@torch.no_grad()
def logits(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(torch.tensor([ids]), use_cache=False).logits[0]
    return found


def expected(model: Any, asked: list[Request]) -> list[tuple[float, bool]]:
    """Each request alone, as the harness defines it."""
    found = []
    for question, answer in asked:
        ids = (question + answer)[-(MAX_LENGTH + 1) :]
        scores = F.log_softmax(logits(model, ids[:-1]), dim=-1)[-len(answer) :]
        targets = torch.tensor(answer)
        best = bool((scores.argmax(dim=-1) == targets).all())
        found.append((float(scores.gather(1, targets[:, None]).sum()), best))
    return found


def assert_equal(model: Any, asked: list[Request], *found: list[tuple[float, bool]]) -> None:
    """Scores, found in whichever ways, no less exact than each request's alone by the plain
    formulas."""

    def scores(answers: list[tuple[float, bool]]) -> torch.Tensor:
        return torch.tensor([score for score, _ in answers], dtype=torch.float64)

    plain = plainly(model, lambda m: scores(expected(m, asked)))
    best = [greedy for _, greedy in expected(model, asked)]
    for one in found:
        assert_as_exact(scores(one).float(), *plain, floor=CHUNKED_FLOOR)
        assert [greedy for _, greedy in one] == best
