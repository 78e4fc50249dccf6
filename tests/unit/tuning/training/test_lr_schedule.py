from hypothesis import given
from hypothesis import strategies as st

from tuning.training.lr_schedule import rate_factor, warmup_steps

KINDS = st.sampled_from(["cosine", "linear", "constant"])


@given(st.floats(0.0001, 0.99), st.integers(2, 10_000))
def test_warmup_takes_at_least_one_step_and_never_the_whole_run(warmup, steps):
    assert 1 <= warmup_steps(warmup, steps) < steps


@given(st.floats(0, 0.9), st.integers(1, 500), KINDS)
def test_learning_rate_rises_to_the_peak_then_falls_and_stays_positive(warmup, steps, kind):
    rates = [rate_factor(step, steps, warmup, kind) for step in range(steps)]
    peak = warmup_steps(warmup, steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak] == 1
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_schedule_without_warmup_starts_at_the_peak_rate():
    assert rate_factor(0, 10, 0.0, "cosine") == 1
