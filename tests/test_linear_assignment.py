"""Our linear assignment against scipy's, whose costs it must reach; several assignments may."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from hf_speech_ssl.modeling.linear_assignment import assign

RNG = np.random.default_rng(0)
COSTS = {
    "random": lambda size: RNG.standard_normal((size, size)),
    "ties": lambda size: RNG.integers(0, 3, (size, size)).astype(float),
    "float32": lambda size: RNG.random((size, size), dtype=np.float32),
    "all equal": lambda size: np.ones((size, size)),
}


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("size", [0, 1, 2, 7, 60])
def test_costs_are_the_least(kind: str, size: int):
    for _ in range(5):
        costs = COSTS[kind](size)
        columns = assign(costs)
        assert sorted(columns) == list(range(size))
        assert costs[range(size), columns].sum() == pytest.approx(costs[linear_sum_assignment(costs)].sum(), rel=1e-5)


def test_a_permutation_is_recovered():
    entries, order = RNG.standard_normal((200, 8)), RNG.permutation(200)
    moved = (entries + 0.05 * RNG.standard_normal(entries.shape))[order]
    costs = np.square(entries[:, None] - moved).sum(-1)
    assert np.array_equal(order[assign(costs)], np.arange(200))
