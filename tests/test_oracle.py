"""An oracle: Hugging Face's diffusers, a library written by others, gives the same numbers as our formulas."""

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")

from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from fmdiff_helpers.diffusion import add_noise, posterior, velocity
from fmdiff_helpers.schedules import Schedule, cosine_beta, linear_beta, quadratic_beta, sigmoid_beta

T = 1000
# Their name, our schedule. The two agree in what they do with beta_start and beta_end, by default 1e-4 and 0.02.
PAIRS = {
    "linear": linear_beta(T),
    "scaled_linear": quadratic_beta(T),
    "squaredcos_cap_v2": cosine_beta(T),
    "sigmoid": sigmoid_beta(T),
}
EXACT = {"rtol": 1e-9, "atol": 1e-12}  # float64 round-off

every_pair = pytest.mark.parametrize("name", PAIRS)
some_t = pytest.mark.parametrize("t", [0, 1, T // 2, T - 1])


def pair(name: str, **options) -> tuple[DDPMScheduler, Schedule]:
    """Return their scheduler and our schedule. Theirs gets our alpha_bar, in float64, so formulas differ or agree."""
    theirs, ours = DDPMScheduler(T, beta_schedule=name, clip_sample=False, **options), Schedule(PAIRS[name])
    theirs.alphas_cumprod = ours.alpha_bar
    return theirs, ours


def images(seed: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@every_pair
def test_beta_and_alpha_bar(name):
    """To 1e-6 and 2e-5 of each number, the float32 round-off of theirs: the last cosine alpha is 1 - 0.999."""
    theirs, ours = DDPMScheduler(T, beta_schedule=name), Schedule(PAIRS[name])
    assert_close(theirs.betas.double(), ours.beta, rtol=1e-6, atol=0)
    assert_close(theirs.alphas_cumprod.double(), ours.alpha_bar, rtol=2e-5, atol=0)


@every_pair
def test_add_noise_and_velocity_at_every_t(name):
    theirs, ours = pair(name)
    x0, eps, t = images(0, T), images(1, T), torch.arange(T)
    assert_close(add_noise(x0, t, eps, ours), theirs.add_noise(x0, eps, t), **EXACT)
    assert_close(velocity(x0, t, eps, ours), theirs.get_velocity(x0, eps, t), **EXACT)


@every_pair
def test_signal_to_noise_ratio_at_every_t(name):
    """To 1e-6: compute_snr rounds to float32."""
    theirs, ours = pair(name)
    assert_close(ours.log_snr.exp(), compute_snr(theirs, torch.arange(T)).double(), rtol=1e-6, atol=0)


@some_t
@every_pair
def test_posterior_variance(name, t):
    """At t = 0 theirs is 1e-20, so that it has a logarithm; ours is 0."""
    theirs, ours = pair(name, variance_type="fixed_small")
    variance = posterior(images(0), images(1), torch.tensor([t]), ours)[1]
    assert_close(variance.squeeze(), theirs._get_variance(t), **EXACT)


@some_t
@every_pair
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_draw_from_the_posterior_is_a_step_of_ddpm_whose_model_is_never_wrong(name, t, prediction):
    """Both take the same noise, so mean and variance are both compared. At t = 0 no noise is added."""
    theirs, ours = pair(name, variance_type="fixed_small", prediction_type=prediction)
    x0, eps, steps = images(0), images(1), torch.tensor([t])
    xt = add_noise(x0, steps, eps, ours)
    output = {"epsilon": eps, "sample": x0, "v_prediction": velocity(x0, steps, eps, ours)}[prediction]
    step = theirs.step(output, t, xt, generator=torch.Generator().manual_seed(2))
    mean, variance = posterior(x0, xt, steps, ours)
    assert_close(mean + variance.sqrt() * images(2), step.prev_sample, **EXACT)
