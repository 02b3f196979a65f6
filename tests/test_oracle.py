"""An oracle: Hugging Face's diffusers, a library written by others, gives the same numbers as our formulas."""

import math

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    RePaintScheduler,
)
from diffusers.training_utils import compute_snr

from fmdiff_helpers.diffusion import add_noise, forward_step, posterior, velocity, x0_from_eps
from fmdiff_helpers.flow_samplers import even_times, sample_dpm, sample_euler
from fmdiff_helpers.measurements import Mask
from fmdiff_helpers.metrics import frechet_distance, kernel_distance
from fmdiff_helpers.repair import rectify, seen_before, step_back
from fmdiff_helpers.samplers import respace, sample_ddim, sample_ddpm, trailing
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


# metrics


def given_features(count: int) -> torch.nn.Module:
    """Return what torchmetrics takes for a network: here it hands on features that are there already."""
    network = torch.nn.Identity()
    network.num_features = count
    return network


def feature_sets(n: int, m: int, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two sets of features that are not independent, of different means and covariances, in float64."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, count, generator=draw, dtype=torch.float64) for rows in (n, m))
    mix_a, mix_b = (torch.randn(count, count, generator=draw, dtype=torch.float64) / count**0.5 for _ in "ab")
    return (a @ mix_a).relu(), (b @ mix_b + 0.3).relu()


def torchmetrics_of(metric: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    metric.update(a, real=False)
    metric.update(b, real=True)
    return metric.compute()


@pytest.mark.parametrize("n, m", [(300, 300), (40, 500)])
def test_frechet_distance(n, m):
    """Theirs, from torchmetrics, is in float64 too. It sums products before it takes the mean away: 1e-9."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    a, b = feature_sets(n, m)
    theirs = torchmetrics_of(fid.FrechetInceptionDistance(given_features(16)), a, b)
    assert frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_kernel_distance():
    """Theirs, from torchmetrics, takes subsets; a single one as large as the sets is all there is."""
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = feature_sets(300, 300)
    theirs = kid.KernelInceptionDistance(given_features(16), subsets=1, subset_size=300, degree=3, gamma=None, coef=1.0)
    assert kernel_distance(a, b) == pytest.approx(torchmetrics_of(theirs, a, b)[0].item(), rel=1e-9)


# Whole chains

SHORT = 100  # steps of the schedule of a chain, enough for every kind of step and quick
CHAINS = {"linear": Schedule(linear_beta(SHORT, 1e-3, 0.2)), "cosine": Schedule(cosine_beta(SHORT))}
# Numbers of steps K for which (SHORT - 1) / (K - 1) is whole: diffusers' DDIM takes all strides for equally long.
every_length = pytest.mark.parametrize("num_steps", [SHORT, 12, 4])
every_chain = pytest.mark.parametrize("name", CHAINS)
every_clip = pytest.mark.parametrize("clip", [1.0, float("inf")])


@pytest.fixture
def double_noise(monkeypatch):
    """Let both draw their noise in float64: in two precisions, the same generator gives different numbers."""

    def randn(*shape, generator, **_):
        return torch.empty(*shape, dtype=torch.float64).normal_(generator=generator)

    monkeypatch.setattr(torch, "randn", randn)


def fake(xt, t, y=None):
    """A model that is bent and never right, and knows x and t; seldom so wrong that all of x0 is clipped."""
    return torch.tanh(xt + torch.as_tensor(t).reshape(-1, 1, 1, 1) / SHORT)


def their_chain(scheduler: type, name: str, num_steps: int, clip: float, **options):
    """Return their scheduler with our alpha_bar, in float64, and its steps set."""
    clips = {"clip_sample": clip < float("inf"), "clip_sample_range": clip}
    theirs = scheduler(SHORT, timestep_spacing="linspace", **clips, **options)
    theirs.alphas_cumprod = CHAINS[name].alpha_bar
    theirs.set_timesteps(num_steps)
    return theirs


@pytest.mark.parametrize("T", [100, 200, 1000])
def test_chosen_steps(T):
    """At halves the two may round to two neighbours; these numbers of steps have none."""
    theirs = DDPMScheduler(T, timestep_spacing="linspace")
    for num_steps in (2, 3, 4, 5, 8, 10, 12, 20, 34, 50, 99, 100):
        theirs.set_timesteps(num_steps)
        steps = torch.linspace(0, T - 1, num_steps, dtype=torch.float64)
        if ((steps - steps.floor() - 0.5).abs() > 1e-9).all():
            assert theirs.timesteps.flip(0).equal(respace(Schedule(cosine_beta(T)), num_steps)[0])


@pytest.mark.parametrize("T", [100, 200, 1000])
def test_trailing_steps(T):
    theirs = DDPMScheduler(T, timestep_spacing="trailing")
    for num_steps in (1, 2, 4, 5, 10, 20, 50, 100):
        theirs.set_timesteps(num_steps)
        assert theirs.timesteps.flip(0).equal(trailing(Schedule(cosine_beta(T)), num_steps))


def check_chain(theirs, sampler, name: str, options: dict, **our_options):
    """Compare each step of both chains; `options` are those of their steps."""
    x, generator, passed = images(0, 3), torch.Generator().manual_seed(1), []
    for t in theirs.timesteps:
        x = theirs.step(fake(x, t), t, x, generator=generator, **options).prev_sample
        passed.append(x)
    ours, generator = [], torch.Generator().manual_seed(1)
    found = sampler(fake, images(0, 3), CHAINS[name], generator, watch=ours.append, **our_options)
    assert_close(found, x, **EXACT)
    assert [step.t for step in ours] == theirs.timesteps.tolist()
    assert_close(torch.stack([step.x_prev for step in ours]), torch.stack(passed), **EXACT)


@every_chain
@every_length
@every_clip
def test_a_chain_of_ddpm(name, num_steps, clip, double_noise):
    theirs = their_chain(DDPMScheduler, name, num_steps, clip, variance_type="fixed_small")
    check_chain(theirs, sample_ddpm, name, {}, num_steps=num_steps, clip=clip)


@every_chain
@every_length
@every_clip
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_chain_of_ddim(name, num_steps, clip, eta, double_noise):
    """Their option use_clipped_model_output is what ours always does: a clipped x0 has another noise to go with it."""
    theirs = their_chain(DDIMScheduler, name, num_steps, clip)
    theirs.num_inference_steps = num_steps - 1 if num_steps < SHORT else num_steps  # SHORT // this is their stride
    options = {"eta": eta, "use_clipped_model_output": True}
    check_chain(theirs, sample_ddim, name, options, num_steps=num_steps, clip=clip, eta=eta)


# Flows


def curved(x, t, y=None):
    """A velocity that depends on every number, and on the time."""
    return torch.tanh(x) + t.reshape(-1, 1, 1, 1) * x.flip(3)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("name", ["euler", "dpm"])
def test_samplers_of_flows(name, num_steps):
    """The same steps at the same times; theirs keep the times in float32."""
    if name == "euler":
        theirs, ours = FlowMatchEulerDiscreteScheduler(), sample_euler
    else:
        options = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "final_sigmas_type": "zero"}
        theirs, ours = DPMSolverMultistepScheduler(**options, flow_shift=1.0), sample_dpm
    theirs.set_timesteps(num_steps)
    theirs.sigmas = torch.tensor(even_times(num_steps), dtype=torch.float64)
    x = expected = images(0, 3)
    for k, t in enumerate(theirs.timesteps):
        now = torch.full((3,), theirs.sigmas[k].item(), dtype=torch.float64)
        expected = theirs.step(curved(expected, now), t, expected, return_dict=False)[0].double()
    assert_close(ours(curved, x, num_steps, clip=math.inf), expected, rtol=1e-5, atol=1e-5)


@some_t
def test_a_step_of_repaint_down_and_up(t):
    """Theirs uses the noise of the unknown pixels once more for the known ones."""
    ours = Schedule(cosine_beta(T))
    theirs = RePaintScheduler(T, eta=1.0, clip_sample=False)
    theirs.alphas_cumprod, theirs.betas = ours.alpha_bar, ours.beta
    theirs.set_timesteps(T, jump_length=1, jump_n_sample=1)
    xt, eps_hat, x0 = images(0), images(1), images(2)
    keep = torch.arange(16).reshape(4, 4) % 3 == 0

    noise = torch.randn(xt.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    expected = theirs.step(eps_hat, t, xt, x0, keep.double(), torch.Generator().manual_seed(7)).prev_sample
    x0_hat = x0_from_eps(xt, torch.tensor([t]), eps_hat, ours)
    step = step_back(xt, t, torch.arange(T), ours, x0_hat, eps_hat, torch.Generator())
    mean, variance = posterior(x0_hat, xt, torch.tensor([t]), ours)
    assert_close(step.x_prev, mean + step.noise, **EXACT)
    seen = seen_before(t, Mask(keep), Mask(keep).apply(x0), noise, ours)
    assert_close(rectify(mean + variance.sqrt() * noise, Mask(keep), seen), expected, **EXACT)
    up = theirs.undo_step(xt, t, torch.Generator().manual_seed(7))
    assert_close(forward_step(xt, torch.tensor([t]), noise, ours), up, **EXACT)
