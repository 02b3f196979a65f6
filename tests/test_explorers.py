"""The claims of fmdiff_helpers.explorers: what all nine explorers do, and what each one shows."""

import math
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from test_filmstrip import decode
from torch import nn

from fmdiff_helpers import explorers, schedules
from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise, eps_from_x0
from fmdiff_helpers.frames import as_frame, histogram_frame, label_frame
from fmdiff_helpers.models.attention_autoencoder import AttentionAutoencoder
from fmdiff_helpers.models.vae import VAE, kl_divergence
from fmdiff_helpers.plots import class_clouds, tile
from fmdiff_helpers.samplers import sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

GARMENTS, LABELS = draw_garments(200)
SHORT, LONG = Schedule(cosine_beta(50)), Schedule(cosine_beta(1000))
GAIN = nn.Parameter(torch.tensor(1.0))  # as if the networks had just been trained, and asked for gradients
IN_BOTH = "VBox HBox HTML Image IntSlider Play Dropdown BoundedIntText Checkbox".split()  # ipywidgets 7.7 and 8


def clean(x, t, y, T):
    """The picture that the network sees behind the noise: brighter for a higher label, and dark without one."""
    kind = torch.full_like(t, -4) if y is None else y
    return GAIN * 1.5 * torch.tanh(x + (0.15 * kind - 0.5 * t / T).reshape(-1, 1, 1, 1))


def network(schedule):
    return lambda x, t, y=None: eps_from_x0(x, t, clean(x, t, y, schedule.T), schedule)


def drawer(schedule, autoencoder=None, num_steps=None):
    """What an explorer needs of a Drawer."""
    process = SimpleNamespace(schedule=schedule)
    return SimpleNamespace(model=network(schedule), process=process, autoencoder=autoencoder, num_steps=num_steps)


def small_vae(seed: int, **options) -> VAE:
    """A VAE as if it were trained, with its own standardisation."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(width=4, **options).eval()
    vae.shift.fill_(0.1 * seed)
    vae.scale.fill_(1 + seed)
    return vae


def small_autoencoder() -> AttentionAutoencoder:
    """An autoencoder as if it were trained, its latents standardised by other images, with another mean."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        autoencoder = AttentionAutoencoder(width=8).eval()
        for parameter in autoencoder.parameters():  # larger than untrained ones: pictures of all greys
            nn.init.normal_(parameter, std=0.15)
        z = autoencoder.encode(to_model(GARMENTS))
        autoencoder.shift.copy_(z.mean(dim=0) + 0.3 * z.std(dim=0))
        autoencoder.scale.copy_(z.std(dim=0))
    return autoencoder


class Says:
    """A classifier that takes the first 5 of 12 images for shirts and the others for bags, and keeps what it saw."""

    def __call__(self, x):
        self.seen = x
        return torch.eye(10)[[6] * 5 + [8] * 7]


VAES = {beta: small_vae(seed, channels=5, grid=1) for seed, beta in enumerate((0, 0.1, 10))}
CODER = small_autoencoder()
MAKE = {
    "NoisingExplorer": (GARMENTS, LABELS),
    "ReverseExplorer": (drawer(SHORT),),
    "KindsExplorer": (drawer(SHORT),),
    "StepsExplorer": (drawer(LONG, small_vae(1)),),
    "LatentExplorer": (drawer(LONG, small_vae(1)),),
    "GuidanceExplorer": (drawer(SHORT), Says(), GARMENTS, LABELS),
    "BetaExplorer": (VAES, GARMENTS),
    "LatentWalk": (small_vae(2), GARMENTS, LABELS),
    "PathExplorer": (drawer(LONG, CODER), GARMENTS, LABELS),
}
# What each one opens on: the values of its controls, and the name, the value and the last value of its slider.
OPENS = {
    "NoisingExplorer": (
        {"garment": "Ankle boot", "index": 0, "schedule": "linear", "T": 1000},
        ("timestep t", 249, 999),
    ),
    "ReverseExplorer": ({"seed": 0, "clip": True}, ("steps taken", 49, 49)),
    "KindsExplorer": ({"seed": 0, "sampler": "DDIM", "num_steps": 10}, ("steps taken", 9, 9)),
    "StepsExplorer": ({"seed": 0}, ("more steps", 2, 6)),
    "LatentExplorer": ({"seed": 0, "num_steps": 50, "eta": 0.0}, ("steps taken", 24, 49)),
    "GuidanceExplorer": ({"label": "Shirt", "w": 2.0, "seed": 0, "num_steps": 20}, ("steps taken", 9, 19)),
    "BetaExplorer": ({"seed": 0}, ("beta, rising", 0, 2)),
    "LatentWalk": ({"start": "Trouser", "end": "Coat", "index": 0}, ("way, in %", 50, 100)),
    "PathExplorer": ({"label": "Dress", "seed": 0, "num_steps": 50, "eta": 0.0}, ("steps taken", 25, 50)),
}
HISTOGRAM = "pixels of x_t against N(0, 1)"
PANELS = {
    "NoisingExplorer": ["x0 (data)", "eps (noise)", "x_t", HISTOGRAM],
    "ReverseExplorer": ["x_t", "eps_hat, predicted", "x0_hat, implied", "noise added (x 5)", HISTOGRAM],
    "KindsExplorer": ["kind", "x_t", "x0_hat, predicted"],
    "StepsExplorer": ["kind", "eta = 0", "eta = 0.5", "eta = 1"],
    "LatentExplorer": ["kind", "x_t, the latent", "x_t, decoded", "x0_hat, decoded"],
    "GuidanceExplorer": ["x_t", "x0_hat with the label", "x0_hat without", "with - without", "x0_hat, guided"],
    "BetaExplorer": ["garments", "through the latent", "drawn from the prior"],
    "LatentWalk": ["mixing pixels", "walking in the latent", "where that is"],
    "PathExplorer": ["the state, decoded", "its x0_hat, decoded", "the way (ring: x0_hat)"],
}
OPTIONS = {
    **dict.fromkeys(("garment", "label", "start", "end"), CLASS_NAMES),
    **{"eta": (0.0, 0.5, 1.0), "T": (50, 100, 200, 300, 1000), "w": (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)},
    **{"schedule": tuple(explorers.SCHEDULES), "sampler": ("DDIM", "DDPM")},
    "KindsExplorer": (2, 5, 10, 20, 50),
    "LatentExplorer": (5, 10, 20, 50, 200, 1000),
    "GuidanceExplorer": (10, 20, 50),
    "PathExplorer": (10, 20, 50, 200),
}
every_explorer = pytest.mark.parametrize("name", MAKE)


def make(name: str, choice: dict | None = None, **options):
    """An explorer whose controls are set, one after the other."""
    explorer = getattr(explorers, name)(*MAKE[name], **options)
    for control, value in (choice or {}).items():
        explorer.controls[control].value = value
    return explorer


def shown(explorer) -> dict[str, bytes]:
    """The pictures of the page, by their titles."""
    boxes = [box.children for box in explorer.pictures.children]
    return {title.value: image.value for title, image in boxes}


def snr(schedule, t: int) -> str:
    ratio = schedule.alpha_bar[t] / (1 - schedule.alpha_bar[t])
    return f"t = {t:4d}   SNR {10 * math.log10(ratio):6.1f} dB"


def tiled(x: torch.Tensor, columns: int) -> np.ndarray:
    return tile(to_uint8(x.detach()), columns).numpy()


def near(frame: np.ndarray, x: torch.Tensor, columns: int = 1) -> bool:
    """Tell whether a frame shows x, where x was calculated otherwise: rounding may fall to either side."""
    return np.abs(frame.astype(int) - tiled(x, columns)).max() <= 1


def inside(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from inside(child)


# What all of them do


@every_explorer
def test_it_opens_on_its_choice_with_all_its_parts_in_view(name):
    explorer, (values, slider) = make(name), OPENS[name]
    assert {control: widget.value for control, widget in explorer.controls.items()} == values
    assert (explorer.slider.description, explorer.slider.value, explorer.slider.max) == slider
    assert list(shown(explorer)) == PANELS[name]
    for control, widget in explorer.controls.items():
        if isinstance(widget, widgets.Dropdown):
            assert widget.options == OPTIONS[name if control == "num_steps" else control]
    parts = [*explorer.controls.values(), explorer.slider, explorer.play, explorer.pictures, explorer.readout]
    view = list(inside(explorer.view))
    assert all(part in view for part in parts) and {part._model_name for part in view} <= {f"{n}Model" for n in IN_BOTH}


@every_explorer
def test_each_step_has_the_same_panels_each_time_and_its_own_readout(name):
    explorer, again = make(name), make(name)
    frames = {}
    for t in (0, explorer.slider.max // 2, explorer.slider.max):
        panels, readout = frames[t] = explorer.frame(t)
        same, line = again.frame(t)
        assert list(panels) == PANELS[name] and line == readout
        for title, frame in panels.items():
            assert frame.dtype == np.uint8 and frame.shape == frames[0][0][title].shape
            assert np.array_equal(frame, same[title])
        explorer.slider.value = t
        assert f">{readout}</code>" in explorer.readout.value
        assert all(np.array_equal(decode(shown(explorer)[title]), frame) for title, frame in panels.items())
    assert len({readout for _, readout in frames.values()}) == 3


def another(explorer, control: str):
    """Another value of a control: the first or the last option, another number, no tick."""
    widget = explorer.controls[control]
    if isinstance(widget, widgets.Dropdown):
        return widget.options[-1] if widget.value == widget.options[0] else widget.options[0]
    return 5 if isinstance(widget, widgets.BoundedIntText) else False


@pytest.mark.parametrize("name, control", [(name, control) for name in MAKE for control in OPENS[name][0]])
def test_another_choice_is_prepared_once_and_shows_other_pictures_and_the_former_one_the_same_again(name, control):
    explorer, prepared = make(name), []
    prepare = explorer.prepare
    explorer.prepare = lambda: prepared.append(control) or prepare()
    explorer.slider.value = place = explorer.slider.max // 2
    before, value = shown(explorer), another(explorer, control)
    explorer.controls[control].value = value
    after = shown(explorer)
    same = {"schedule": {"x0 (data)"}, "T": {"x0 (data)"}, "clip": {"noise added (x 5)"}}.get(control, set())
    same |= {"kind", "eps (noise)"} & after.keys()
    assert {title for title in after if after[title] == before[title]} == same
    assert prepared == [control]
    if control in ("garment", "label", "start", "end", "seed"):
        opened = make(name, **{control: value})
        opened.slider.value = explorer.slider.value
        assert shown(opened) == after
    explorer.controls[control].value = OPENS[name][0][control]
    explorer.slider.value = place
    assert shown(explorer) == before


@every_explorer
def test_its_film_is_short_and_small_and_it_leaves_the_global_generator_and_its_data_alone(name):
    rng, garments, labels = torch.get_rng_state(), GARMENTS.clone(), LABELS.clone()
    explorer = make(name)
    film = explorer.filmstrip()
    assert list(film.panels) == PANELS[name]
    assert len(film.readout) == min(explorer.film_frames, explorer.slider.max + 1) <= 20
    assert [film.readout[0], film.readout[-1]] == [explorer.frame(t)[1] for t in (0, explorer.slider.max)]
    assert len(film._repr_html_()) < {"NoisingExplorer": 250_000, "StepsExplorer": 450_000}.get(name, 400_000)
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(GARMENTS, garments) and torch.equal(LABELS, labels)


SEEDED = [name for name in MAKE if "seed" in OPENS[name][0]]
NAMED = [(name, what) for name in MAKE for what in ("garment", "label", "start", "end") if what in OPENS[name][0]]


@pytest.mark.parametrize("name, what", NAMED)
def test_it_opens_on_a_kind_by_any_name_that_the_kind_has_or_says_what_kinds_there_are(name, what):
    assert make(name, **{what: "t-shirt/TOP"}).controls[what].value == "T-shirt"
    with pytest.raises(ValueError, match=f"{what} is 'Hat'; expected a name or a number of: 0 T-shirt, "):
        make(name, **{what: "Hat"})


@pytest.mark.parametrize("name", SEEDED)
def test_it_opens_on_any_seed_of_the_command_and_says_so_of_others(name):
    assert make(name, seed=2**32).controls["seed"].value == 2**32
    for seed in (-1, 2**32 + 1, 1.5):
        with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number from 0 to 4294967296"):
            make(name, seed=seed)


@pytest.mark.parametrize("name, control", [(n, c) for n in MAKE for c in ("index", "seed") if c in OPENS[n][0]])
def test_a_number_that_a_box_does_not_offer_is_an_error_and_changes_nothing(name, control):
    explorer = make(name)
    before, most = shown(explorer), {"index": 19, "seed": 2**32}[control]
    for number in (-1, most + 1):
        with pytest.raises(ValueError, match=f" is {number}; expected a whole number from 0 to {most}"):
            explorer.controls[control].value = number
    assert explorer.controls[control].value == 0 and shown(explorer) == before


@every_explorer
def test_a_step_that_is_not_on_the_slider_is_an_error_and_the_slider_stays(name):
    explorer = make(name)
    before, (title, place, last) = shown(explorer), OPENS[name][1]
    for t in (-1, last + 1):
        with pytest.raises(ValueError, match=f"{title} is {t}; expected a whole number from 0 to {last}"):
            explorer.slider.value = t
    assert explorer.slider.value == place and shown(explorer) == before


@pytest.mark.parametrize(
    "name", ["ReverseExplorer", "KindsExplorer", "LatentExplorer", "GuidanceExplorer", "PathExplorer"]
)
def test_it_opens_on_the_number_of_steps_of_its_drawer(monkeypatch, name):
    asked = SimpleNamespace(**vars(MAKE[name][0]) | {"num_steps": 7})
    monkeypatch.setitem(MAKE, name, (asked, *MAKE[name][1:]))
    explorer = make(name)
    assert explorer.slider.max == (7 if name == "PathExplorer" else 6)
    if "num_steps" in explorer.controls:
        assert explorer.controls["num_steps"].options == tuple(sorted({7, *OPTIONS[name]}))


@every_explorer
def test_what_goes_wrong_is_shown(name):
    explorer = make(name)
    explorer.prepare = lambda: 1 // 0
    control = next(iter(explorer.controls))
    with pytest.raises(ZeroDivisionError):
        explorer.controls[control].value = another(explorer, control)
    assert explorer.readout.value.startswith("ZeroDivisionError: ")


# NoisingExplorer


@pytest.mark.parametrize("choice", [{}, {"garment": "Dress", "index": 19}, {"T": 50, "schedule": "sigmoid"}])
@pytest.mark.parametrize("seed", [0, 1])
def test_noising_shows_x_t_of_the_chosen_garment_schedule_and_step(choice, seed):
    explorer = make("NoisingExplorer", choice, seed=seed)
    garment, index, name, T = (OPENS["NoisingExplorer"][0] | choice).values()
    of_kind = GARMENTS[CLASS_NAMES.index(garment) == LABELS]
    x0 = to_model(of_kind[index])[None]
    eps = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    schedule = Schedule(getattr(schedules, f"{name}_beta")(T))
    for t in (0, T // 4, T - 1):
        panels, readout = explorer.frame(t)
        xt = add_noise(x0, torch.tensor([t]), eps, schedule)
        expected = [*(tiled(x, 1) for x in (x0, eps, xt)), histogram_frame(xt, height=168)]
        assert all(np.array_equal(*pair) for pair in zip(panels.values(), expected, strict=True))
        scales = f"x_t = {schedule.alpha_bar[t].sqrt():.3f} x0 + {(1 - schedule.alpha_bar[t]).sqrt():.3f} eps"
        assert readout == snr(schedule, t).replace("   SNR", f"   {scales}   SNR")


def test_every_schedule_is_offered_and_works_at_every_length():
    makers = {name for name in vars(schedules) if name.endswith("_beta")}
    assert {f"{name.replace(' ', '_')}_beta" for name in explorers.SCHEDULES} == makers
    for name, maker in explorers.SCHEDULES.items():
        assert maker is getattr(schedules, f"{name.replace(' ', '_')}_beta")
        for T in OPTIONS["T"]:
            explorer = make("NoisingExplorer", {"schedule": name, "T": T})
            assert explorer.schedule.beta.equal(maker(T)) and explorer.slider.max == T - 1


@pytest.mark.parametrize("name, kind", [("NoisingExplorer", "Ankle boot"), ("GuidanceExplorer", "Shirt")])
def test_a_garment_that_is_not_among_the_images_is_an_error(monkeypatch, name, kind):
    others = CLASS_NAMES.index(kind) != LABELS
    monkeypatch.setitem(MAKE, name, (*MAKE[name][:-2], GARMENTS[others], LABELS[others]))
    with pytest.raises(ValueError, match=f"there is no {kind} among the 180 images"):
        make(name)


@pytest.mark.parametrize(
    "name, control", [("NoisingExplorer", "garment"), ("LatentWalk", "start"), ("LatentWalk", "end")]
)
def test_the_box_goes_to_the_last_garment_of_a_kind_that_has_fewer(monkeypatch, name, control):
    """What the box says is what is shown."""
    few = torch.ones(200, dtype=torch.bool)
    few[(LABELS == CLASS_NAMES.index("Bag")).nonzero()[3:]] = False
    monkeypatch.setitem(MAKE, name, (*MAKE[name][:-2], GARMENTS[few], LABELS[few]))
    explorer = make(name, {"index": 19, control: "Bag"})
    assert explorer.controls["index"].value == explorer.controls["index"].max == 2
    assert shown(explorer) == shown(make(name, {control: "Bag", "index": 2}))
    explorer.controls[control].value = OPENS[name][0][control]
    explorer.controls["index"].value = 19


# Recorded chains


def by_hand(name: str, choice: dict) -> list:
    """The steps of the chain that a choice means."""
    values = OPENS[name][0] | choice
    generator, steps = torch.Generator().manual_seed(values["seed"]), []
    kinds = torch.arange(10)

    def labelled(x, t, y):  # eps_null + w (eps_y - eps_null)
        without = network(SHORT)(x, t)
        return without + values["w"] * (network(SHORT)(x, t, y) - without)

    options = {"watch": steps.append, "num_steps": values.get("num_steps")}
    if name == "ReverseExplorer":
        x = torch.randn((4, 1, 28, 28), generator=generator)
        sample_ddpm(network(SHORT), x, SHORT, generator, clip=1.0 if values["clip"] else math.inf, **options)
    elif name == "KindsExplorer":
        x = torch.randn((2, 1, 28, 28), generator=generator).repeat(10, 1, 1, 1)
        sampler = {"DDIM": sample_ddim, "DDPM": sample_ddpm}[values["sampler"]]
        sampler(network(SHORT), x, SHORT, generator, y=kinds.repeat_interleave(2), **options)
    elif name == "LatentExplorer":
        x = torch.randn((1, 4, 7, 7), generator=generator).repeat(10, 1, 1, 1)
        sample_ddim(network(LONG), x, LONG, generator, y=kinds, eta=values["eta"], clip=math.inf, **options)
    else:
        x = torch.randn((12, 1, 28, 28), generator=generator)
        y = torch.full((12,), CLASS_NAMES.index(values["label"]))
        sample_ddim(labelled, x, SHORT, generator, y=y, **options)
    return steps


def decoded(x):
    return MAKE["LatentExplorer"][0].autoencoder.from_latent(x)


def squares(latent):
    """Latents (10, 4, 7, 7) with the channels side by side, each number 4 x 4 pixels large."""
    return torch.kron(latent.movedim(1, 2).reshape(10, 1, 7, 28), torch.ones(4, 4))


COLUMNS = {"ReverseExplorer": 2, "KindsExplorer": 2, "LatentExplorer": 1, "GuidanceExplorer": 4}
PARTS = {  # of a step, by the title of their panel
    "x_t": lambda step: step.xt,
    "eps_hat, predicted": lambda step: step.eps_hat,
    "noise added (x 5)": lambda step: 5 * step.noise,
    **dict.fromkeys(("x0_hat, implied", "x0_hat, predicted", "x0_hat, guided"), lambda step: step.x0_hat),
    "x_t, the latent": lambda step: squares(step.xt / 3),  # 3 standard deviations are black and white
    "x_t, decoded": lambda step: decoded(step.xt),
    "x0_hat, decoded": lambda step: decoded(step.x0_hat),
}


@pytest.mark.parametrize(
    "name, choice",
    [
        ("ReverseExplorer", {}),
        ("ReverseExplorer", {"seed": 4, "clip": False}),
        ("KindsExplorer", {"seed": 5, "num_steps": 2}),
        ("KindsExplorer", {"sampler": "DDPM", "num_steps": 50}),
        ("LatentExplorer", {}),
        ("LatentExplorer", {"seed": 5, "num_steps": 5, "eta": 1.0}),
        ("GuidanceExplorer", {"label": "Bag", "seed": 7}),
        ("GuidanceExplorer", {"w": 0.5, "num_steps": 10}),
        ("GuidanceExplorer", {"label": "Dress", "w": 8.0, "num_steps": 50}),
    ],
)
def test_a_chain_is_that_of_the_choice_and_each_of_its_steps_is_shown(name, choice):
    explorer, steps = make(name, choice), by_hand(name, choice)
    assert len(explorer.steps) == len(steps) == explorer.slider.max + 1
    schedule = MAKE[name][0].process.schedule
    for t, (step, expected) in enumerate(zip(explorer.steps, steps, strict=True)):
        assert step.t == expected.t
        assert all(torch.equal(*pair) for pair in zip(step[1:], expected[1:], strict=True))
        panels, readout = explorer.frame(t)
        for title in PARTS.keys() & panels.keys():
            assert np.array_equal(panels[title], tiled(PARTS[title](expected), COLUMNS[name])), title
        assert readout.startswith(snr(schedule, step.t))
        if name == "ReverseExplorer":
            assert np.array_equal(panels[HISTOGRAM], histogram_frame(step.xt, height=168))
            assert readout.endswith(f"   std of the noise added {step.noise.std().item():.3f}")
        if "kind" in panels:
            assert np.array_equal(panels["kind"], label_frame(CLASS_NAMES))


def test_the_first_noise_added_is_not_the_start_again():
    step = make("ReverseExplorer").steps[0]
    together = torch.stack([step.noise.flatten(), step.xt.flatten()])
    assert torch.corrcoef(together)[0, 1].abs() < 0.1


# StepsExplorer


def test_each_number_of_steps_goes_by_ddim_from_the_same_two_noises_to_two_garments_of_each_kind():
    explorer = make("StepsExplorer", seed=10)
    start = torch.randn((2, 4, 7, 7), generator=torch.Generator().manual_seed(10)).repeat(10, 1, 1, 1)
    pictures = set()
    for place, num_steps in enumerate((1, 2, 5, 10, 20, 50, 100)):
        panels, readout = explorer.frame(place)
        assert readout == f"{num_steps:3d} steps"
        for eta in (0.0, 0.5, 1.0):
            generator, steps = torch.Generator().manual_seed(-num_steps), []
            options = {"y": torch.arange(20) // 2, "clip": math.inf, "eta": eta, "watch": steps.append}
            z = sample_ddim(network(LONG), start, LONG, generator, num_steps, **options)
            assert np.array_equal(panels[f"eta = {eta:g}"], tiled(decoded(z), 2))
        # A single step adds no noise, whatever eta.
        assert len({panels[f"eta = {eta:g}"].tobytes() for eta in (0, 0.5, 1)}) == (3 if place else 1)
        pictures.add(panels["eta = 0"].tobytes())
        if place:  # the noise added first is not the start again, although the seed of the start is 10
            together = torch.stack([steps[0].noise[:2].flatten(), steps[0].xt[:2].flatten()])
            assert torch.corrcoef(together)[0, 1].abs() < 5 / math.sqrt(together.shape[1])
    assert len(pictures) == 7


# GuidanceExplorer


@pytest.mark.parametrize("choice", [{}, {"w": 0.5}, {"label": "Bag", "w": 8.0}, {"w": 0.0}, {"w": 1.0}])
def test_with_and_without_the_label_are_the_clean_pictures_that_the_two_predictions_imply(choice):
    """Both are of the same x_t, and guidance goes w times as far from the one to the other, within -1 to 1."""
    explorer = make("GuidanceExplorer", choice)
    w, y = choice.get("w", 2.0), torch.full((12,), CLASS_NAMES.index(choice.get("label", "Shirt")))
    for place in (0, 3, explorer.slider.max):
        panels, step = explorer.frame(place)[0], explorer.steps[place]
        t = torch.full((12,), step.t)
        label, none = clean(step.xt, t, y, 50), clean(step.xt, t, None, 50)
        expected = [step.xt, label, none, label - none, none + w * (label - none)]
        for title, x in zip(PANELS["GuidanceExplorer"], expected, strict=True):
            assert near(panels[title], x, columns=4), title
        assert step.x0_hat.abs().max() <= 1
    assert w < 2 or (expected[-1] > 1).any()


@pytest.mark.parametrize("label, right", [("Shirt", 5), ("Bag", 7), ("Dress", 0)])
def test_the_readout_counts_the_samples_that_look_like_their_kind_and_compares_their_spread(label, right):
    explorer = make("GuidanceExplorer", {"label": label})
    x0 = by_hand("GuidanceExplorer", {"label": label})[-1].x_prev
    real = GARMENTS[CLASS_NAMES.index(label) == LABELS].double() / 127.5 - 1
    spreads = [((x - x.mean(0)).square().sum(0) / (len(x) - 1)).sqrt().mean().item() for x in (x0, real)]
    expected = "{} of 12 look like their kind   spread {:.2f}, of real ones {:.2f}".format(right, *spreads)
    assert all(explorer.frame(place)[1].endswith(f" dB   {expected}") for place in range(20))
    assert torch.equal(explorer.classifier.seen, x0) and f"{spreads[0]:.2f}" != f"{spreads[1]:.2f}"


# A VAE's latent


def test_each_place_of_the_slider_is_the_vae_of_one_beta_with_the_same_garments_and_points():
    explorer = make("BetaExplorer")
    generator = torch.Generator().manual_seed(0)
    x0 = to_model(GARMENTS[torch.randint(200, (16,), generator=generator)])
    z = torch.randn((16, 5, 1, 1), generator=generator)
    for place, (beta, vae) in enumerate(VAES.items()):
        panels, readout = explorer.frame(place)
        mu, log_var = vae.encode(x0)
        through = vae.decode(mu)
        for frame, x in zip(panels.values(), (x0, through, vae.decode(z)), strict=True):
            assert np.array_equal(frame, tiled(x, 4))
        error, kl = (through - x0).square().mean().item(), kl_divergence(mu, log_var).mean().item()
        assert readout == f"beta = {beta:<6g} squared error of a pixel {error:.4f}   KL {kl:6.1f} nats"


@pytest.mark.parametrize("options", [{"channels": 2, "grid": 7}, {"channels": 5, "grid": 1}])
def test_a_walk_goes_straight_from_one_latent_to_the_other_and_the_dot_with_it_on_the_map(options):
    vae = small_vae(2, **options)
    walk = explorers.LatentWalk(vae, GARMENTS, LABELS, start="Dress", end="Bag")
    assert LABELS[walk.ends].tolist() == [CLASS_NAMES.index("Dress"), CLASS_NAMES.index("Bag")]
    a, b = to_model(GARMENTS[walk.ends])[:, None]
    z = [vae.encode(x)[0] for x in (a, b)]
    check_map(walk.map, vae.encode(to_model(GARMENTS))[0])
    first, last = walk.map.pixels(walk.z)[walk.ends]
    for t in (0, 30, 70, 100):
        panels, readout = walk.frame(t)
        assert near(panels["mixing pixels"], a + (b - a) * t / 100)
        assert near(panels["walking in the latent"], vae.decode(z[0] + (z[1] - z[0]) * t / 100))
        assert readout == f"{t:3d} % of the way from Dress to Bag"
        way = walk.map.with_way([first, last], dot=first + (last - first) * t / 100, width=1)
        assert np.array_equal(panels["where that is"], way)


def test_from_a_kind_to_itself_is_a_walk_between_two_garments():
    walk = make("LatentWalk", start="Dress", end="Dress")
    assert len(set(walk.ends)) == 2 and LABELS[walk.ends].unique().tolist() == [CLASS_NAMES.index("Dress")]


def check_map(shown, z: torch.Tensor) -> np.ndarray:
    """Check that a map shows latents along the two directions in which they spread most; return their pixels."""
    z = z.detach().flatten(1)
    axes = torch.linalg.svd(z - z.mean(dim=0), full_matrices=False).Vh[:2].T
    axes = axes * (axes * shown.axes).sum(dim=0).sign()  # a direction may as well be the opposite one
    points = (z - z.mean(dim=0)) @ axes
    figure = class_clouds(points, LABELS, CLASS_NAMES, size=336 / 75)
    figure.set_dpi(75)
    _, pixels = as_frame(figure, points)
    np.testing.assert_allclose(shown.pixels(z), pixels, atol=0.5)
    assert shown.picture.shape == (336, 336, 3) and pixels.min() > 8 and pixels.max() < 328
    return pixels


# PathExplorer


@pytest.mark.parametrize("choice", [{}, {"label": "Bag", "seed": 5, "num_steps": 10, "eta": 1.0}])
def test_a_path_shows_each_state_from_the_noise_to_the_sample_that_ddim_draws(choice):
    """Decoded, and the clean one that the network predicts; the sample is its own."""
    explorer = make("PathExplorer", choice)
    label, seed, num_steps, eta = (OPENS["PathExplorer"][0] | choice).values()
    generator, steps, y = torch.Generator().manual_seed(seed), [], torch.tensor([CLASS_NAMES.index(label)])
    x = torch.randn((1, 1, 8, 8), generator=generator)
    options = {"num_steps": num_steps, "eta": eta, "clip": math.inf, "watch": steps.append}
    sample = sample_ddim(network(LONG), x, LONG, generator, y=y, **options)
    assert explorer.slider.max == num_steps == len(steps)
    for place in range(0, num_steps + 1, num_steps // 10):
        panels, readout = explorer.frame(place)
        step = steps[place] if place < num_steps else None
        z, z_hat = (step.xt, step.x0_hat) if step else (sample, sample)
        assert np.array_equal(panels["the state, decoded"], tiled(CODER.from_latent(z), 1))
        assert near(panels["its x0_hat, decoded"], CODER.from_latent(z_hat))
        about = snr(LONG, step.t) if step else "the sample"
        assert readout == f"{about}   {(z - x).norm().item():5.2f} from where it began"


def test_the_way_on_the_map_goes_through_the_states_so_far_and_not_beyond():
    explorer = make("PathExplorer", {"num_steps": 10, "label": "Ankle boot", "eta": 1.0})
    with torch.no_grad():
        check_map(explorer.map, CODER.to_latent(to_model(GARMENTS)))
    pixels = explorer.map.pixels(explorer.path)
    halfway = ((pixels[:-1] + pixels[1:]) / 2).round().astype(int)
    far = np.linalg.norm(np.diff(pixels, axis=0), axis=1) > 20  # there halfway is no part of the dot
    assert far.any()
    for t in range(11):
        frame = explorer.frame(t)[0]["the way (ring: x0_hat)"]
        drawn = [(frame[y - 1 : y + 2, x - 1 : x + 2] == 0).all(axis=2).any() for x, y in halfway]
        assert all(drawn[:t]) and (t == 10 or not (far[t] and drawn[t]))
        x, y = pixels[t].round().astype(int)
        assert (frame[y - 2 : y + 3, x - 2 : x + 3] == 0).all()


def test_at_the_noise_the_map_has_only_a_dot_there_and_a_ring_at_the_clean_latent_that_the_network_sees():
    explorer = make("PathExplorer", {"label": "Bag", "seed": 2})
    frame, z = explorer.frame(0)[0]["the way (ring: x0_hat)"], explorer.path[:1]
    z_hat = clean(z, torch.tensor([999]), torch.tensor([8]), 1000).detach()
    dot, ring = explorer.map.pixels(torch.cat([z, z_hat]))
    assert np.linalg.norm(ring - dot) > 12
    y, x = (frame != explorer.map.picture).any(axis=2).nonzero()
    from_dot, from_ring = (np.hypot(x - place[0], y - place[1]) for place in (dot, ring))
    assert (np.minimum(from_dot, abs(from_ring - 5)) < 7.5).all()
    assert (from_dot < 4).sum() > 40 and (abs(from_ring - 5) < 2).sum() > 40 and (from_ring < 3).sum() == 0
