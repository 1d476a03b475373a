import math

import pytest

from hf_speech_ssl.training.schedules import make_schedule


def test_tri_stage_is_birqs_thirty_epochs():
    per_epoch = 7
    factor = make_schedule("tri_stage", 30 * per_epoch, warmup_steps=10 * per_epoch, hold_steps=10 * per_epoch)
    for step in range(1, 30 * per_epoch + 1):
        epoch = math.ceil(step / per_epoch)  # 1 to 30
        expected = step / (10 * per_epoch) if epoch <= 10 else 1.0 if epoch <= 20 else 2 ** (-(epoch - 20) / 2)
        assert factor(step) == pytest.approx(expected), step


def test_inverse_sqrt_is_vaswanis_formula():
    factor = make_schedule("inverse_sqrt", 100_000, warmup_steps=400)
    for step in (1, 399, 400, 401, 1600, 100_000):
        assert factor(step) == pytest.approx(min(step**-0.5, step * 400**-1.5) * 400**0.5)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("exponential", 0.1**0.5, 0.1)],
)
def test_curves_after_a_warm_up_and_a_hold(name, middle, end):
    factor = make_schedule(name, 1000, warmup_steps=0.1, hold_steps=0.1, final_factor=0.1)
    assert [factor(step) for step in (1, 50, 100, 200)] == pytest.approx([0.01, 0.5, 1.0, 1.0])
    assert [factor(600), factor(1000)] == pytest.approx([middle, end])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="tri_stage"):
        make_schedule("tristage", 10)
    with pytest.raises(ValueError, match="exceed the run's 10 steps"):
        make_schedule("linear", 10, warmup_steps=20)
