"""The claims of fmdiff_helpers.schedules: each schedule's defining property, the tables, the end of the chain."""

import math
import re
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch.testing import assert_close

from fmdiff_helpers.schedules import (
    NOISE_SNR,
    Schedule,
    cosine_beta,
    describe_end,
    ends_in_noise,
    linear_beta,
    quadratic_beta,
    rescaled_linear_beta,
    sigmoid_beta,
)

MAKERS = [linear_beta, rescaled_linear_beta, quadratic_beta, sigmoid_beta, cosine_beta]
TABLES = ["beta", "alpha", "alpha_bar", "alpha_bar_prev", "signal_scale", "noise_scale", "log_snr"]
EXACT = {"rtol": 1e-12, "atol": 0}  # float64 round-off, nothing more

every_maker = pytest.mark.parametrize("make", MAKERS)
every_length = pytest.mark.parametrize("T", [50, 100, 1000])
other_ends = pytest.mark.parametrize("ends", [(1e-4, 0.02), (1e-5, 0.01)])


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(value: float, count: int) -> torch.Tensor:
    return torch.full((count,), value, dtype=torch.float64)


# What each schedule is


@every_maker
@every_length
def test_a_schedule_is_T_float64_values_that_never_fall(make, T):
    beta = make(T)
    assert beta.shape == (T,) and beta.dtype == torch.float64
    assert (beta.diff() > 0).all()


@every_length
@pytest.mark.parametrize("make", [linear_beta, quadratic_beta])
def test_linear_and_quadratic_run_from_1e_4_to_2e_2(make, T):
    """The published bug of "quad" squares the ramp of beta itself, which gives betas from 1e-16 to 1.6e-7."""
    assert_close(make(T)[[0, -1]], f64(1e-4, 0.02), **EXACT)


@every_length
@other_ends
@pytest.mark.parametrize(("make", "root"), [(linear_beta, 1), (quadratic_beta, 2)])
def test_linear_beta_and_the_square_root_of_quadratic_beta_rise_by_the_same_amount_each_step(make, root, T, ends):
    first, last = (end ** (1 / root) for end in ends)
    line = [first + (last - first) * t / (T - 1) for t in range(T)]
    assert_close(make(T, *ends), f64(*line) ** root, rtol=1e-10, atol=0)


@every_length
@other_ends
def test_sigmoid_beta_is_a_logistic_curve_from_minus_6_to_6(T, ends):
    """Its inverse, the log-odds of the height between the two ends, is a straight line."""
    beta = sigmoid_beta(T, *ends)
    log_odds = ((beta - ends[0]) / (ends[1] - beta)).log()
    assert_close(log_odds, f64(*[-6 + 12 * t / (T - 1) for t in range(T)]), rtol=0, atol=1e-9)


@every_length
def test_rescaled_linear_is_1000_over_T_times_linear(T):
    assert_close(rescaled_linear_beta(T), linear_beta(T) * 1000 / T, **EXACT)


@every_length
@pytest.mark.parametrize("s", [0.008, 0.02])
def test_cosine_alpha_bar_is_the_closed_form_wherever_beta_is_not_clipped(T, s):
    """alpha_bar_t = f((t + 1) / T) / f(0) with f(u) = cos^2(pi/2 (u + s) / (1 + s)). Only the last is clipped."""
    beta = cosine_beta(T, s)
    free = beta < 0.999
    assert free[:-1].all() and beta[-1] == 0.999
    f = [math.cos(math.pi / 2 * (t / T + s) / (1 + s)) ** 2 for t in range(T + 1)]
    expected = f64(*[f[t + 1] / f[0] for t in range(T)])
    assert_close(Schedule(beta).alpha_bar[free], expected[free], rtol=1e-9, atol=0)


# The tables


@every_maker
@every_length
def test_alpha_bar_is_the_strictly_falling_product_of_1_minus_beta(make, T):
    schedule = Schedule(make(T))
    product = [1.0]
    for beta in make(T).tolist():
        product.append(product[-1] * (1 - beta))
    assert_close(schedule.alpha, 1 - make(T), **EXACT)
    assert_close(schedule.alpha_bar, f64(*product[1:]), **EXACT)
    assert_close(schedule.alpha_bar_prev, f64(*product[:-1]), **EXACT)
    assert 0 < schedule.alpha_bar[-1] and schedule.alpha_bar[0] < 1 and (schedule.alpha_bar.diff() < 0).all()


@every_maker
def test_signal_noise_and_log_snr_are_what_alpha_bar_says(make):
    schedule = Schedule(make(1000))
    snr = schedule.alpha_bar / (1 - schedule.alpha_bar)
    assert_close(schedule.signal_scale, schedule.alpha_bar**0.5, **EXACT)
    assert_close(schedule.noise_scale, (1 - schedule.alpha_bar) ** 0.5, **EXACT)
    assert_close(schedule.log_snr, snr.log(), rtol=0, atol=1e-11)
    assert_close(schedule.log_snr_db, 10 * snr.log10(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tables_are_float64_whatever_the_dtype_of_beta(dtype):
    schedule = Schedule(linear_beta(100).to(dtype))
    assert {getattr(schedule, name).dtype for name in [*TABLES, "log_snr_db"]} == {torch.float64}


@every_maker
def test_to_cpu_keeps_every_value(make):
    schedule = Schedule(make(100))
    moved = schedule.to("cpu")
    assert isinstance(moved, Schedule) and moved.T == 100
    for name in TABLES:
        assert_close(getattr(moved, name), getattr(schedule, name), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*TABLES, "T"])
def test_a_schedule_is_frozen(name):
    schedule = Schedule(linear_beta(10))
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(schedule, name, linear_beta(10))


# The end of the chain


@pytest.mark.parametrize(
    ("make", "T", "noise", "kept", "snr"),
    [
        (linear_beta, 50, False, "77.65%", "SNR 1.8 dB"),
        (linear_beta, 100, False, "60.30%", "SNR -2.4 dB"),
        (linear_beta, 200, False, "36.36%", "SNR -8.2 dB"),
        (linear_beta, 300, False, "21.92%", "SNR -13.0 dB"),
        (linear_beta, 1000, True, "0.64%", "SNR -43.9 dB"),
        (rescaled_linear_beta, 50, True, "0.28%", "SNR -51.1 dB"),
        (rescaled_linear_beta, 100, True, "0.45%", "SNR -46.9 dB"),
        (rescaled_linear_beta, 1000, True, "0.64%", "SNR -43.9 dB"),
        (cosine_beta, 50, True, "0.10%", "SNR -60.1 dB"),
        (cosine_beta, 200, True, "0.02%", "SNR -72.2 dB"),
        (cosine_beta, 1000, True, "0.00%", "SNR -86.1 dB"),
        (quadratic_beta, 300, False, "33.83%", "SNR -8.9 dB"),
        (quadratic_beta, 1000, True, "2.71%", "SNR -31.3 dB"),
        (sigmoid_beta, 300, False, "21.87%", "SNR -13.0 dB"),
        (sigmoid_beta, 1000, True, "0.63%", "SNR -44.0 dB"),
    ],
)
def test_which_chains_end_in_noise_and_the_words_say_so(make, T, noise, kept, snr):
    """The words give the signal scale in percent and the SNR, and what to do only where something is to be done."""
    schedule = Schedule(make(T))
    assert ends_in_noise(schedule) is noise
    said = describe_end(schedule)
    for number in (f"T = {T}:", f" {kept} of x0", f"({snr})"):
        assert number in said
    assert ("NOT" in said) is not noise
    assert ("rescaled_linear_beta" in said and "cosine_beta" in said) is not noise


@pytest.mark.parametrize(("snr", "noise"), [(0.99 * NOISE_SNR, True), (1.01 * NOISE_SNR, False)])
def test_the_threshold_is_an_snr_of_one_in_a_thousand_at_the_last_step(snr, noise):
    """alpha_bar = snr / (1 + snr) solves alpha_bar / (1 - alpha_bar) = snr. There 3.2 % of the picture is left."""
    assert NOISE_SNR == 1e-3
    schedule = Schedule(f64(0.5, 1 - 2 * snr / (1 + snr)))
    assert ends_in_noise(schedule) is noise
    assert_close(schedule.signal_scale[-1].item(), 0.0316, rtol=0.01, atol=0)


# Bad input


@every_maker
@pytest.mark.parametrize("T", [0, 1, -3, 2.5, "10", True])
def test_what_is_no_number_of_steps_is_refused_by_value(make, T):
    with pytest.raises(ValueError, match=re.escape(f"T is {T!r}; expected a whole number of steps, at least 2")):
        make(T)


@pytest.mark.parametrize(
    ("beta", "found"),
    [
        ([0.1, 0.2], "beta is [0.1, 0.2];"),
        (0.1, "beta is 0.1;"),
        (None, "beta is None;"),
        (torch.full((2, 3), 0.1), "beta is torch.float32 of shape (2, 3);"),
        (torch.tensor(0.1), "beta is torch.float32 of shape ();"),
        (torch.tensor([1, 2]), "beta is torch.int64 of shape (2,);"),
        (torch.tensor([True]), "beta is torch.bool of shape (1,);"),
        (f64(), "beta is torch.float64 of shape (0,);"),
        (f64(0, 0.1), "beta[0] is 0;"),
        (f64(0.1, 1), "beta[1] is 1;"),
        (f64(0.1, 0.2, math.nan), "beta[2] is nan;"),
        (f64(0.1, math.inf), "beta[1] is inf;"),
        (f64(0.1, -0.25, -0.5), "beta[1] is -0.25;"),
        (rescaled_linear_beta(20), "beta[19] is 1;"),
    ],
)
def test_a_beta_that_is_no_schedule_is_refused_by_value(beta, found):
    with pytest.raises(ValueError, match=re.escape(found)):
        Schedule(beta)


def test_the_shortest_rescaled_chain_has_21_steps():
    assert Schedule(rescaled_linear_beta(21)).T == 21


def test_a_schedule_keeps_its_own_tables():
    beta = linear_beta(10)
    schedule = Schedule(beta)
    beta[0] = 0.5
    assert schedule.beta[0] == 1e-4
