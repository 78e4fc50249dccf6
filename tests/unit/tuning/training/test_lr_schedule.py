from hypothesis import given
from hypothesis import strategies as st

from tuning.training.lr_schedule import rate_factor, warmup_steps

KINDS = st.sampled_from(["cosine", "linear", "constant"])


@given(st.floats(0.0001, 0.99), st.integers(2, 10_000))
def test_a_warm_up_never_rounds_to_nothing_nor_takes_the_whole_run(warmup, steps):
    assert 1 <= warmup_steps(warmup, steps) < steps


@given(st.floats(0, 0.9), st.integers(1, 500), KINDS)
def test_rates_rise_to_the_peak_and_fall_and_are_never_nothing(warmup, steps, kind):
    rates = [rate_factor(step, steps, warmup, kind) for step in range(steps)]
    peak = warmup_steps(warmup, steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak] == 1
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_no_warm_up_when_none_is_asked_for():
    assert rate_factor(0, 10, 0.0, "cosine") == 1
