"""The claims of fmdiff_helpers.player: a page holds its frames, an explorer shows its choice and draws once."""

import base64
import io
import json
import math
import re
from collections import Counter
from functools import partial
from html.parser import HTMLParser
from itertools import product
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from PIL import Image

from fmdiff_helpers import player, schedules
from fmdiff_helpers.data import CLASS_NAMES, to_model, to_uint8
from fmdiff_helpers.diffusion import add_noise, eps_from_x0
from fmdiff_helpers.models.attention_autoencoder import AttentionAutoencoder
from fmdiff_helpers.models.vae import VAE, kl_divergence
from fmdiff_helpers.player import (
    SCHEDULES,
    BetaExplorer,
    Explorer,
    Filmstrip,
    GuidanceExplorer,
    KindsExplorer,
    LatentExplorer,
    LatentWalk,
    LiveLoss,
    NoisingExplorer,
    PathExplorer,
    ReverseExplorer,
    StepsExplorer,
)
from fmdiff_helpers.plots import as_frame, class_clouds, histogram_frame, label_frame, tile
from fmdiff_helpers.samplers import sample_ddim, sample_ddpm
from fmdiff_helpers.schedules import Schedule, cosine_beta
from fmdiff_helpers.standin import draw_garments

HOSTILE = "</script><b>\"'&amp; $film ${src} $$ \u2028 <!-- \\u003c"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def decode(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


class Page(HTMLParser):
    """What a browser makes of a Filmstrip: its elements with their attributes, its text and what its script holds."""

    def __init__(self, film: Filmstrip):
        super().__init__()
        self.html = film._repr_html_()
        self.elements: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.script = ""
        self.feed(self.html)
        self.close()
        uris, rest = json.JSONDecoder().raw_decode(self.script.split("const panels = ", 1)[1])
        after = self.script.split("const panels = ", 1)[1][rest:]
        self.readout, _ = json.JSONDecoder().raw_decode(after.removeprefix(", readout = "))
        self.panels = [[self.picture(uri) for uri in panel] for panel in uris]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.elements[-1][0] == "script" and not self.script:
            self.script = text
        elif text.strip():
            self.text.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]

    @staticmethod
    def picture(uri: str) -> np.ndarray:
        kind, code = uri.split(",")
        assert kind == "data:image/png;base64"
        return decode(base64.b64decode(code, validate=True))


# Filmstrip


def test_a_filmstrip_holds_every_frame_pixel_for_pixel():
    panels = {"grey": noise(4, 28, 30), "colour": noise(4, 9, 8, 3), "a tensor": torch.from_numpy(noise(4, 5, 5))}
    page = Page(Filmstrip(panels, ["a", "b", "c", "d"]))
    assert page.readout == ["a", "b", "c", "d"]
    for shown, frames in zip(page.panels, panels.values(), strict=True):
        assert len(shown) == 4 and all(np.array_equal(*pair) for pair in zip(shown, frames, strict=True))


def test_a_picture_that_never_changes_is_held_once():
    page = Page(Filmstrip({"still": noise(1, 28, 28).repeat(4, axis=0), "moving": noise(4, 28, 28)}, "abcd", start=3))
    assert [len(frames) for frames in page.panels] == [1, 4]
    assert np.array_equal(page.picture(page.all("img")[0]["src"]), noise(1, 28, 28)[0])


@pytest.mark.parametrize("start", [0, 2])
def test_without_scripts_the_page_shows_the_start_frame_and_no_dead_control(start):
    page = Page(Filmstrip({"x_t": noise(3, 28, 14)}, ["t = 0", "t = 1", "t = 2"], height=56, start=start))
    (image,) = page.all("img")
    assert np.array_equal(page.picture(image["src"]), noise(3, 28, 14)[start])
    assert "height:56px" in image["style"] and "width:28px" in image["style"]
    assert page.text[0] == "x_t" and page.text[-1] == f"t = {start}"
    for control in page.all("button") + page.all("input"):
        assert "display:none" in control["style"]


def test_slider_and_pictures_speak_to_a_screen_reader():
    page = Page(Filmstrip({"x_t": noise(3, 28, 28)}, ["t = 0", "t = 1", "t = 2"], start=1))
    assert [image["alt"] for image in page.all("img")] == ["x_t, t = 1"]
    (slider,), (button,) = page.all("input"), page.all("button")
    assert slider["aria-label"] == "timestep" and button["aria-label"]
    assert (slider["type"], slider["min"], slider["max"], slider["value"]) == ("range", "0", "2", "1")


@pytest.mark.parametrize("height, expected", [(28, "auto"), (29, "pixelated"), (14, "auto")])
def test_only_a_picture_that_is_scaled_up_has_sharp_pixels(height, expected):
    (image,) = Page(Filmstrip({"x": noise(1, 28, 28)}, ["a"], height=height)).all("img")
    assert image["style"].endswith(f"image-rendering:{expected}")


def test_hostile_text_is_shown_as_it_is_and_ends_no_script():
    page = Page(Filmstrip({HOSTILE: noise(2, 3, 3)}, [HOSTILE, "b"]))
    harmless = Page(Filmstrip({"title": noise(2, 3, 3)}, ["a", "b"]))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert page.readout == [HOSTILE, "b"] and page.text.count(HOSTILE) == 2
    (image,) = page.all("img")
    assert image["alt"] == f"{HOSTILE}, {HOSTILE}" and image["data-title"] == HOSTILE
    assert page.html.count("</script>") == 1


@pytest.mark.parametrize("text", ["<!-- <script>", "<!--<script", "</script>"])
def test_no_text_changes_how_a_browser_reads_the_script(text):
    """After <!-- <script> a browser takes the script's own end for text, and with it the rest of the page."""
    page = Page(Filmstrip({"x": noise(2, 3, 3)}, [text, "b"]))
    assert page.readout[0] == text
    assert "<" not in page.script.split("const panels = ", 1)[1].split(";\n")[0]


def test_a_page_needs_nothing_from_the_network():
    page = Page(Filmstrip({"x": noise(2, 3, 3)}, ["a", "b"]))
    assert not re.search(r"https?:|//\w|url\(|import|fetch", re.sub(r"base64,[^\"]*", "", page.html))
    assert {tag for tag, _ in page.elements} <= set("figure div img figcaption button input output script".split())


def test_the_same_frames_give_the_same_page_and_others_another():
    def film(frames: np.ndarray, *readout: str) -> Page:
        return Page(Filmstrip({"x": frames}, readout))

    first, same = film(noise(2, 3, 3), "a", "b"), film(noise(2, 3, 3).copy(), "a", "b")
    assert first.html == same.html
    for other in (film(noise(2, 3, 3)[::-1], "a", "b"), film(noise(2, 3, 3), "a", "c")):
        assert first.all("figure")[0]["data-film"] != other.all("figure")[0]["data-film"]


def test_36_frames_of_ten_images_of_noise_stay_within_400_kB():
    """Noise is what compresses least."""
    size = len(Filmstrip({"x_t": noise(36, 28, 280)}, [f"t = {t}" for t in range(36)])._repr_html_())
    assert size < 400_000


@pytest.mark.parametrize(
    "frames, readout, message",
    [
        (np.zeros((2, 3, 3)), "ab", r"panel 'x' is float64 \(2, 3, 3\); expected uint8"),
        (torch.zeros(2, 3, 3, dtype=torch.int64), "ab", r"panel 'x' is int64 \(2, 3, 3\); expected uint8"),
        (noise(3, 3), "abc", r"panel 'x' is uint8 \(3, 3\)"),
        (noise(2, 1, 3, 3, 3), "ab", r"panel 'x' is uint8 \(2, 1, 3, 3, 3\)"),
        (noise(2, 1, 28, 28), "ab", r"panel 'x' is uint8 \(2, 1, 28, 28\)"),
        (noise(2, 28, 28, 4), "ab", r"panel 'x' is uint8 \(2, 28, 28, 4\)"),
        (noise(2, 3, 3), "abc", r"panel 'x' is uint8 \(2, 3, 3\); .* F = 3, one frame for each readout"),
        (noise(0, 3, 3), "", "start is 0"),
    ],
)
def test_frames_that_are_no_film_are_an_error(frames, readout, message):
    with pytest.raises(ValueError, match=message):
        Filmstrip({"fine": noise(len(readout), 3, 3), "x": frames}, readout)


@pytest.mark.parametrize("start", [-1, 2])
def test_a_start_beyond_the_film_is_an_error(start):
    with pytest.raises(ValueError, match=f"start is {start}; expected a frame number from 0 to 1"):
        Filmstrip({"x": noise(2, 3, 3)}, ["a", "b"], start=start)


# Explorer


class Counting(Explorer):
    """Draws t as a picture and counts; T below zero cannot be prepared and T = 13 cannot be drawn."""

    def __init__(self):
        self.prepared, self.drawn, self.locks = [], Counter(), []
        super().__init__({"T": widgets.IntText(value=101), "colour": widgets.Dropdown(options=["grey", "<b>"])})

    def prepare(self) -> int:
        T = self.controls["T"].value
        self.prepared.append(T)
        self.drawn.clear()
        self.locks.append(self.disabled())
        if T < 0:
            raise RuntimeError(f"T is <{T}>")
        return T

    def draw(self, t: int):
        assert 0 <= t < self.controls["T"].value
        if self.controls["T"].value == 13:
            raise RuntimeError("13 is <unlucky>")
        self.drawn[t] += 1
        return {"x <t>": np.full((2, 2), t % 256, dtype=np.uint8)}, f"t = {t} <&>"

    def disabled(self) -> list[bool]:
        return [control.disabled for control in [*self.controls.values(), self.slider, self.play]]

    def shown(self) -> int:
        (box,) = self.pictures.children
        return decode(box.children[1].value)[0, 0]


def test_an_explorer_shows_the_step_of_its_slider():
    explorer = Counting()
    assert explorer.shown() == 0
    for t in (7, 100, 0):
        explorer.slider.value = t
        assert explorer.shown() == t and f"t = {t} &lt;&amp;&gt;" in explorer.readout.value
    assert explorer.pictures.children[0].children[0].value == "x &lt;t&gt;"


def test_a_step_is_drawn_once_for_each_choice():
    explorer = Counting()
    for t in (5, 9, 5, 0, 9):
        explorer.slider.value = t
    assert explorer.drawn == {0: 1, 5: 1, 9: 1} and explorer.prepared == [101]
    explorer.controls["colour"].value = "<b>"
    assert explorer.prepared == [101, 101] and explorer.drawn == {9: 1}, "the pictures of the last choice are gone"
    explorer.slider.value = 5
    assert explorer.drawn == {9: 1, 5: 1}


def test_pictures_are_swapped_in_place():
    """New widgets for each step would flicker and would fill the memory of the browser."""
    explorer = Counting()
    before = explorer.pictures.children
    explorer.slider.value = 50
    explorer.controls["colour"].value = "<b>"
    assert explorer.pictures.children == before


def test_play_and_slider_move_each_other():
    explorer = Counting()
    explorer.play.value = 15
    assert explorer.slider.value == 30 and explorer.shown() == 30
    explorer.slider.value = 40
    assert explorer.play.value == 20


@pytest.mark.parametrize("T", [2, 50, 51, 52, 101, 200, 1000])
def test_play_runs_evenly_from_the_first_step_to_the_last_in_50_frames_at_most(T):
    explorer = Counting()
    explorer.controls["T"].value = T
    steps = []
    for frame in range(explorer.play.max + 1):
        explorer.play.value = frame
        assert explorer.play.value == frame, "or the film would stand still"
        assert explorer.shown() == explorer.slider.value % 256
        steps.append(explorer.slider.value)
    assert steps[0] == 0 and steps[-1] == T - 1 and len(set(steps)) == min(T, 51)
    assert np.ptp(np.diff(steps)) <= 1


def test_the_slider_reaches_every_step_although_play_jumps():
    explorer = Counting()
    for t in range(101):
        explorer.slider.value = t
        assert explorer.slider.value == t


@pytest.mark.parametrize("T", [2, 51, 100, 1001])
def test_a_choice_keeps_the_relative_place_and_draws_one_step(T):
    explorer = Counting()
    explorer.slider.value = 50
    explorer.controls["T"].value = T
    assert explorer.slider.max == T - 1
    assert explorer.slider.value == round((T - 1) / 2)
    assert explorer.shown() == explorer.slider.value % 256
    assert sum(explorer.drawn.values()) == 1


@pytest.mark.parametrize("t", [0, 100])
def test_the_ends_of_the_slider_stay_the_ends(t):
    explorer = Counting()
    explorer.slider.value = t
    for T in (11, 500, 7):
        explorer.controls["T"].value = T
        assert explorer.slider.value == (T - 1 if t else 0)


def test_controls_are_locked_while_a_choice_is_prepared_and_free_after():
    explorer = Counting()
    explorer.controls["colour"].value = "<b>"
    assert explorer.locks == [[True] * 4] * 2 and explorer.disabled() == [False] * 4


def test_a_choice_that_fails_says_why_and_leaves_the_controls_free():
    explorer = Counting()
    with pytest.raises(RuntimeError, match="T is <-1>"):
        explorer.controls["T"].value = -1
    assert explorer.readout.value == "RuntimeError: T is &lt;-1&gt;"
    assert explorer.disabled() == [False] * 4 and explorer.locks[-1] == [True] * 4
    explorer.controls["T"].value = 21
    assert explorer.slider.max == 20 and "t = 0" in explorer.readout.value


def test_a_drawing_that_fails_says_why():
    explorer = Counting()
    with pytest.raises(RuntimeError):
        explorer.controls["T"].value = 13
    assert explorer.readout.value == "RuntimeError: 13 is &lt;unlucky&gt;" and explorer.disabled() == [False] * 4


def test_a_chain_of_one_step_works_and_can_be_left():
    explorer = Counting()
    explorer.controls["T"].value = 1
    assert explorer.slider.max == 0 and explorer.shown() == 0
    explorer.controls["T"].value = 11
    assert explorer.slider.max == 10 and explorer.shown() == 0


def test_an_explorer_keeps_a_bounded_number_of_frames():
    """Each is 150 kB with a histogram, and a widget lives as long as its kernel."""
    explorer = Counting()
    explorer.controls["T"].value = 1000
    for t in range(1000):
        explorer.slider.value = t
    assert explorer.frame.cache_info().currsize <= 256


@pytest.mark.parametrize("num_frames, steps", [(2, [0, 100]), (5, [0, 25, 50, 75, 100]), (999, list(range(101)))])
def test_a_filmstrip_of_an_explorer_runs_evenly_from_the_first_step_to_the_last(num_frames, steps):
    explorer = Counting()
    explorer.slider.value = 60
    film = explorer.filmstrip(num_frames)
    assert film.panels["x <t>"][:, 0, 0].tolist() == steps
    assert film.readout == [f"t = {t} <&>" for t in steps]
    assert steps[film.start] == min(steps, key=lambda t: abs(t - 60)), "it starts where the slider is"
    assert explorer.slider.value == 60 and film.height == explorer.height


@pytest.mark.parametrize(
    "num_frames, fps, milliseconds",
    [(2, 1, 1000), (3, 1, 1000), (7, 3, 333), (11, 5, 200), (20, 10, 100), (40, 10, 100)],
)
def test_a_film_plays_at_ten_frames_a_second_and_a_short_one_slower_so_that_it_lasts(num_frames, fps, milliseconds):
    film = Counting().filmstrip(num_frames)
    page = Page(film)
    assert len(page.readout) == num_frames and film.fps == fps
    assert re.findall(r"}, (\d+)\);", page.script) == [str(milliseconds)], "what the browser waits for each frame"
    assert num_frames * milliseconds >= 2000


def test_a_film_of_a_single_frame_has_a_speed_too():
    explorer = Counting()
    explorer.controls["T"].value = 1
    film = explorer.filmstrip()
    assert film.fps == 1 and len(Page(film).readout) == 1


def test_a_notebook_gets_the_live_widget_and_a_filmstrip_in_its_place():
    explorer = Counting()
    bundle = explorer._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view == {"version_major": 2, "version_minor": 0, "model_id": explorer.view.model_id}
    assert bundle["text/html"] == explorer.filmstrip()._repr_html_()
    assert bundle["text/plain"] == "Counting", "and no address in memory, which would change with each run"


def test_the_view_holds_every_control_the_slider_the_play_button_the_pictures_and_the_readout():
    def inside(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from inside(child)

    explorer = Counting()
    shown = list(inside(explorer.view))
    for part in [*explorer.controls.values(), explorer.slider, explorer.play, explorer.pictures, explorer.readout]:
        assert part in shown


# NoisingExplorer

GARMENTS, LABELS = draw_garments(200)
LENGTHS = (50, 100, 200, 300, 1000)


@pytest.fixture
def noising() -> NoisingExplorer:
    return NoisingExplorer(GARMENTS, LABELS)


def expected(explorer: NoisingExplorer, seed: int = 0) -> tuple[dict[str, np.ndarray], str]:
    """The panels and the readout that belong to the controls and the slider, computed from the definitions."""
    choice, t = {name: control.value for name, control in explorer.controls.items()}, explorer.slider.value
    of_class = GARMENTS[CLASS_NAMES.index(choice["garment"]) == LABELS]
    x0 = to_model(of_class[choice["index"] % len(of_class)])[None]
    eps = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
    schedule = Schedule(SCHEDULES[choice["schedule"]](choice["T"]))
    xt = add_noise(x0, torch.tensor([t]), eps, schedule)
    panels = {name: to_uint8(x)[0, 0].numpy() for name, x in {"x0": x0, "eps": eps, "x_t": xt}.items()}
    panels["pixels"] = histogram_frame(xt, height=168)
    signal, noise, snr = (table[t] for table in (schedule.signal_scale, schedule.noise_scale, schedule.log_snr_db))
    return panels, f"t = {t:4d}   x_t = {signal:.3f} x0 + {noise:.3f} eps   SNR {snr:6.1f} dB"


def check(explorer: NoisingExplorer, seed: int = 0) -> None:
    """What the explorer shows is what its controls say."""
    panels, readout = expected(explorer, seed)
    assert f">{readout}</code>" in explorer.readout.value
    for box, (name, panel) in zip(explorer.pictures.children, panels.items(), strict=True):
        title, image = box.children
        assert name in title.value.split(",")[0] and np.array_equal(decode(image.value), panel), name


def test_the_noising_explorer_opens_on_an_ankle_boot_a_quarter_of_the_way(noising):
    assert [control.value for control in noising.controls.values()] == ["Ankle boot", 0, "linear", 1000]
    assert noising.slider.value == 249
    check(noising)


def test_the_noising_explorer_offers_each_garment_schedule_and_length(noising):
    assert list(noising.controls["garment"].options) == list(CLASS_NAMES)
    assert list(noising.controls["schedule"].options) == list(SCHEDULES)
    assert list(noising.controls["T"].options) == list(LENGTHS)
    makers = {name: make for name, make in vars(schedules).items() if name.endswith("_beta") and name != "check_beta"}
    assert {f"{name.replace(' ', '_')}_beta": make for name, make in SCHEDULES.items()} == makers


@pytest.mark.parametrize(
    "choice", [{"garment": "Bag"}, {"index": 3}, {"schedule": "cosine"}, {"T": 50}, {"garment": "Dress", "T": 200}]
)
def test_a_choice_changes_what_is_drawn(noising, choice):
    before = [box.children[1].value for box in noising.pictures.children]
    for name, value in choice.items():
        noising.controls[name].value = value
    check(noising)
    assert before != [box.children[1].value for box in noising.pictures.children]


@pytest.mark.parametrize("schedule, T", list(product(SCHEDULES, LENGTHS)))
def test_every_schedule_works_at_every_length_that_is_offered(noising, schedule, T):
    noising.controls["schedule"].value, noising.controls["T"].value = schedule, T
    for t in (0, T // 2, T - 1):
        noising.slider.value = t
        check(noising)


def test_an_index_beyond_the_class_starts_again_at_its_first_garment(noising):
    count = int((CLASS_NAMES.index("Ankle boot") == LABELS).sum())
    before = noising.pictures.children[0].children[1].value
    noising.controls["index"].value = count
    assert noising.pictures.children[0].children[1].value == before
    noising.controls["index"].value = 999
    check(noising)


def test_the_noise_stays_the_same_for_every_choice(noising):
    before = noising.pictures.children[1].children[1].value
    for name, value in {"garment": "Shirt", "index": 4, "schedule": "sigmoid", "T": 300}.items():
        noising.controls[name].value = value
        assert noising.pictures.children[1].children[1].value == before


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_decides_the_noise(noising, seed):
    other = NoisingExplorer(GARMENTS, LABELS, seed=seed)
    check(other, seed)
    assert other.pictures.children[1].children[1].value != noising.pictures.children[1].children[1].value


def test_the_noising_explorer_leaves_the_global_generator_and_its_data_alone():
    rng, garments = torch.get_rng_state(), GARMENTS.clone()
    explorer = NoisingExplorer(GARMENTS, LABELS)
    explorer.controls["garment"].value = "Bag"
    explorer.filmstrip()
    assert torch.equal(torch.get_rng_state(), rng) and torch.equal(GARMENTS, garments)


def test_the_saved_noising_explorer_stays_within_250_kB(noising):
    assert len(noising._repr_mimebundle_()["text/html"]) < 250_000


def test_an_unknown_garment_is_an_error():
    with pytest.raises(Exception, match="Invalid selection"):
        NoisingExplorer(GARMENTS, LABELS, garment="ankle boot")


def test_a_garment_that_is_not_among_the_images_is_an_error():
    with pytest.raises(ValueError, match="there is no Ankle boot among the 180 images"):
        NoisingExplorer(GARMENTS[LABELS < 9], LABELS[LABELS < 9])


# the way back


def small_explorer(**options):
    """A ReverseExplorer over eight steps of a denoiser that needs no training."""
    return ReverseExplorer(lambda x, t, y=None: 0.9 * x, Schedule(cosine_beta(8)), **options)


def test_the_way_back_starts_at_the_most_noisy_step_and_shows_what_each_step_did():
    explorer = small_explorer()
    assert explorer.slider.value == explorer.slider.max == 7
    for taken in range(8):
        step = explorer.steps[taken]
        panels, readout = explorer.draw(taken)
        assert step.t == 7 - taken and f"t = {step.t:4d}" in readout
        assert (panels["x_t"] == tile(to_uint8(step.xt), columns=2).numpy()).all()
        assert (panels["x0_hat, implied"] == tile(to_uint8(step.x0_hat), columns=2).numpy()).all()
        assert (panels["eps_hat, predicted"] == tile(to_uint8(step.eps_hat), columns=2).numpy()).all()


def test_another_seed_walks_another_way_and_the_same_seed_the_same():
    explorer, same, other = small_explorer(seed=3), small_explorer(seed=3), small_explorer(seed=4)
    assert torch.equal(explorer.steps[-1].x_prev, same.steps[-1].x_prev)
    assert not torch.equal(explorer.steps[-1].x_prev, other.steps[-1].x_prev)
    explorer.controls["seed"].value = 4
    assert torch.equal(explorer.steps[-1].x_prev, other.steps[-1].x_prev)


def test_the_first_noise_added_is_not_the_start_again():
    step = small_explorer().steps[0]
    together = torch.stack([step.noise.flatten(), step.xt.flatten()])
    assert torch.corrcoef(together)[0, 1].abs() < 0.1


def test_without_the_clip_the_picture_leaves_its_range():
    explorer = small_explorer()
    assert all(step.x0_hat.abs().max() <= 1 for step in explorer.steps)
    explorer.controls["clip"].value = False
    assert any(step.x0_hat.abs().max() > 1 for step in explorer.steps)


# all kinds of garments


def labelled(x, t, y):
    """A denoiser whose answer depends on the label."""
    return 0.9 * x + 0.05 * y.reshape(-1, 1, 1, 1)


CHAIN = Schedule(cosine_beta(50))


def test_ten_kinds_from_the_same_two_starts_and_what_each_step_took_for_the_clean_picture():
    explorer = KindsExplorer(labelled, CHAIN)
    assert explorer.slider.value == explorer.slider.max == 9 and len(explorer.steps) == 10
    start = explorer.steps[0].xt.reshape(10, 2, 1, 28, 28)
    assert all(torch.equal(start[0], others) for others in start) and not torch.equal(start[0, 0], start[0, 1])
    for taken, step in enumerate(explorer.steps):
        panels, readout = explorer.draw(taken)
        assert f"t = {step.t:4d}" in readout
        assert (panels["kind"] == label_frame(CLASS_NAMES)).all() and len(panels["kind"]) == 2 * len(panels["x_t"])
        assert (panels["x_t"] == tile(to_uint8(step.xt), columns=2).numpy()).all()
        assert (panels["x0_hat, predicted"] == tile(to_uint8(step.x0_hat), columns=2).numpy()).all()


@pytest.mark.parametrize("name, sampler", [("DDIM", sample_ddim), ("DDPM", sample_ddpm)])
@pytest.mark.parametrize("num_steps", [2, 50])
def test_seed_sampler_and_number_of_steps_are_those_that_were_chosen(name, sampler, num_steps):
    explorer = KindsExplorer(labelled, CHAIN)
    for control, value in {"seed": 5, "sampler": name, "num_steps": num_steps}.items():
        explorer.controls[control].value = value
    generator = torch.Generator().manual_seed(5)
    x = torch.randn((2, 1, 28, 28), generator=generator).repeat(10, 1, 1, 1)
    y = torch.arange(20) // 2
    expected = sampler(labelled, x, CHAIN, generator, num_steps, y)
    assert torch.equal(explorer.steps[-1].x_prev, expected) and explorer.slider.max == num_steps - 1


# a VAE's latent


def small_vae(seed: int, **options) -> VAE:
    """A VAE as if it were trained, with a standardisation of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(width=4, **options).requires_grad_(False).eval()
    vae.shift.fill_(0.1 * seed)
    vae.scale.fill_(1 + seed)
    return vae


def test_each_place_of_the_slider_is_the_vae_of_one_beta_with_the_same_garments_and_the_same_draw():
    vaes = {beta: small_vae(seed, channels=5, grid=1) for seed, beta in enumerate((0, 0.1, 10))}
    explorer = BetaExplorer(vaes, GARMENTS)
    assert explorer.slider.max == 2
    for place, (beta, vae) in enumerate(vaes.items()):
        panels, readout = explorer.draw(place)
        mu, log_var = vae.encode(explorer.x0)
        expected = explorer.x0, vae.decode(mu), vae.decode(explorer.z)
        for frame, x in zip(panels.values(), expected, strict=True):
            assert (frame == tile(to_uint8(x), columns=4).numpy()).all()
        assert f"beta = {beta:g} " in readout and f"{kl_divergence(mu, log_var).mean().item():.1f} nats" in readout
        assert f"{(vae.decode(mu) - explorer.x0).square().mean().item():.4f}" in readout
    assert explorer.z.shape == (16, 5, 1, 1)


def test_another_seed_shows_other_garments_and_another_draw():
    explorer = BetaExplorer({0.1: small_vae(0, channels=5, grid=1)}, GARMENTS)
    x0, z = explorer.x0, explorer.z
    explorer.controls["seed"].value = 1
    assert not torch.equal(x0, explorer.x0) and not torch.equal(z, explorer.z)
    explorer.controls["seed"].value = 0
    assert torch.equal(x0, explorer.x0) and torch.equal(z, explorer.z)


def test_a_walk_needs_no_network_without_gradients():
    """A network that has just been trained asks for gradients, which no picture needs."""
    LatentWalk(small_vae(2, channels=2, grid=7).requires_grad_(True), GARMENTS, LABELS).slider.value = 30


@pytest.mark.parametrize("options", [{"channels": 2, "grid": 7}, {"channels": 5, "grid": 1}])
def test_a_walk_goes_straight_from_one_latent_to_the_other(options):
    vae = small_vae(2, **options)
    walk = LatentWalk(vae, GARMENTS, LABELS, start="Dress", end="Bag")
    a, b = (to_model(GARMENTS[index : index + 1]) for index in walk.ends)
    assert LABELS[walk.ends].tolist() == [CLASS_NAMES.index("Dress"), CLASS_NAMES.index("Bag")]
    for t in (0, 30, 100):
        panels, readout = walk.draw(t)
        z = vae.encode(a)[0] + (vae.encode(b)[0] - vae.encode(a)[0]) * t / 100
        here = vae.decode(z)[0, 0]
        np.testing.assert_allclose(panels["walking in the latent"].astype(int), to_uint8(here).int(), atol=1)
        mixed = to_uint8(a + (b - a) * t / 100)[0, 0]
        np.testing.assert_allclose(panels["mixing pixels"].astype(int), mixed.int(), atol=1)
        assert readout == f"{t:3d} % of the way from Dress to Bag"


def test_the_dot_of_a_walk_moves_on_the_map_between_its_ends():
    walk = LatentWalk(small_vae(2), GARMENTS, LABELS, start="Dress", end="Bag")
    for t in (0, 50, 100):
        frame = walk.draw(t)[0]["where that is"]
        x, y = walk.pixels[walk.ends[0]] * (1 - t / 100) + walk.pixels[walk.ends[1]] * t / 100
        assert (frame[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3] == 0).all()


def test_the_map_shows_the_two_directions_in_which_latents_differ_most():
    walk = LatentWalk(small_vae(2), GARMENTS, LABELS)
    z = (walk.z - walk.z.mean(0)).flatten(1)
    _, spread, axes = torch.linalg.svd(z, full_matrices=False)
    torch.testing.assert_close(walk.place(walk.z).abs(), (z @ axes[:2].T).abs(), rtol=1e-2, atol=1e-2)
    assert spread[0] > spread[1]


def test_from_a_kind_to_itself_is_a_walk_between_two_garments():
    walk = LatentWalk(small_vae(2), GARMENTS, LABELS, start="Dress", end="Dress")
    assert len(set(walk.ends)) == 2 and LABELS[walk.ends].unique().tolist() == [CLASS_NAMES.index("Dress")]


# chains in a VAE's latent


LONG = Schedule(cosine_beta(1000))


def in_latent(z, t, y):
    """A denoiser that sees each number, the step and the label, and whose clean latents reach beyond 1."""
    x0 = 2 * torch.tanh(z + 0.3 * y.reshape(-1, 1, 1, 1) - 0.001 * t.reshape(-1, 1, 1, 1))
    return eps_from_x0(z, t, x0, LONG)


def pictures(vae: VAE, z: torch.Tensor, columns: int) -> np.ndarray:
    return tile(to_uint8(vae.from_latent(z)), columns).numpy()


def test_any_number_of_steps_goes_from_the_same_two_noises_to_two_garments_of_each_kind():
    begun = []

    def model(z, t, y):
        if t[0] == 999:
            begun.append((z, y))
        return in_latent(z, t, y)

    explorer = StepsExplorer(model, LONG, small_vae(1), seed=7)
    begun.clear()
    for place in range(len(explorer.numbers)):
        explorer.draw(place)
    start = torch.randn((2, 4, 7, 7), generator=torch.Generator().manual_seed(7)).repeat(10, 1, 1, 1)
    assert len(begun) == 3 * len(explorer.numbers)
    assert all(torch.equal(z, start) and y.tolist() == [k // 2 for k in range(20)] for z, y in begun)


def test_without_noise_on_the_way_a_place_of_the_slider_is_ddim_with_its_number_of_steps():
    vae = small_vae(1)
    explorer = StepsExplorer(in_latent, LONG, vae)
    assert explorer.numbers[0] == 1 and explorer.slider.max == len(explorer.numbers) - 1
    assert f">{explorer.numbers[2]:3d} steps<" in explorer.readout.value
    x = torch.randn((2, 4, 7, 7), generator=torch.Generator().manual_seed(0)).repeat(10, 1, 1, 1)
    shown = []
    for place, num_steps in enumerate(explorer.numbers):
        panels, readout = explorer.draw(place)
        assert list(panels) == ["kind", "eta = 0", "eta = 0.5", "eta = 1"] and readout == f"{num_steps:3d} steps"
        assert (panels["kind"] == label_frame(CLASS_NAMES)).all()
        z = sample_ddim(in_latent, x, LONG, num_steps=num_steps, y=torch.arange(20) // 2, clip=math.inf)
        assert (panels["eta = 0"] == pictures(vae, z, 2)).all()
        shown.append(panels["eta = 0"].tobytes())
    assert len(set(shown)) == len(explorer.numbers)


def test_the_panels_differ_in_eta_and_each_shows_the_garments_of_its_own(monkeypatch):
    """A single step adds no noise, whatever eta."""
    vae, made = small_vae(1), {}

    def watched(*args, eta, **options):
        made[eta] = sample_ddim(*args, eta=eta, **options)
        return made[eta]

    monkeypatch.setattr(player, "sample_ddim", watched)
    explorer = StepsExplorer(in_latent, LONG, vae)
    for place in (0, 1, 4):
        panels, _ = explorer.draw(place)
        assert list(made) == [0, 0.5, 1]
        assert all((panels[f"eta = {eta:g}"] == pictures(vae, z, 2)).all() for eta, z in made.items())
        assert len({panels[f"eta = {eta:g}"].tobytes() for eta in made}) == (3 if place else 1)


def test_the_number_of_steps_is_drawn_alike_each_time_and_otherwise_from_another_seed():
    explorer, same, other = (StepsExplorer(in_latent, LONG, small_vae(1), seed=seed) for seed in (3, 3, 4))
    frames = explorer.draw(3)[0]
    for again in (explorer.draw(3)[0], same.draw(3)[0]):
        assert all((again[title] == frame).all() for title, frame in frames.items())
    explorer.controls["seed"].value = 4
    for title in ("eta = 0", "eta = 0.5", "eta = 1"):
        assert (explorer.draw(3)[0][title] == other.draw(3)[0][title]).all()
        assert (other.draw(3)[0][title] != frames[title]).any()


@pytest.mark.parametrize("seed", [0, 5, 10])
def test_the_noise_on_the_way_is_not_the_start_again(monkeypatch, seed):
    """Also where the seed is a number of steps."""
    steps = []
    monkeypatch.setattr(player, "sample_ddim", partial(sample_ddim, watch=steps.append))
    explorer = StepsExplorer(in_latent, LONG, small_vae(1), seed=seed)
    for place, num_steps in enumerate(explorer.numbers[1:], 1):
        explorer.draw(place)
        step = steps[-num_steps]  # the first, with eta = 1
        together = torch.stack([step.noise[:2].flatten(), step.xt[:2].flatten()])
        assert step.t == 999 and torch.corrcoef(together)[0, 1].abs() < 5 / math.sqrt(together.shape[1])


@pytest.mark.parametrize("choice", [{}, {"seed": 5, "num_steps": 10}, {"num_steps": 5, "eta": 1.0}])
def test_a_chain_in_the_latent_is_shown_step_by_step_with_the_pictures_that_it_decodes_to(choice):
    vae = small_vae(1)
    explorer = LatentExplorer(in_latent, LONG, vae)
    assert explorer.slider.value == 24
    for name, value in choice.items():
        explorer.controls[name].value = value
    seed, num_steps, eta = ({"seed": 0, "num_steps": 50, "eta": 0.0} | choice).values()
    assert explorer.slider.max == num_steps - 1
    generator, steps = torch.Generator().manual_seed(seed), []
    x = torch.randn((1, 4, 7, 7), generator=generator).repeat(10, 1, 1, 1)
    options = {"num_steps": num_steps, "eta": eta, "clip": math.inf, "watch": steps.append}
    sample_ddim(in_latent, x, LONG, generator, y=torch.arange(10), **options)
    for place in (0, 1, num_steps // 2, num_steps - 1):
        panels, readout = explorer.draw(place)
        step = steps[place]
        assert list(panels) == ["kind", "x_t, the latent", "x_t, decoded", "x0_hat, decoded"]
        assert (panels["kind"] == label_frame(CLASS_NAMES)).all()
        assert (panels["x_t, decoded"] == pictures(vae, step.xt, 1)).all()
        assert (panels["x0_hat, decoded"] == pictures(vae, step.x0_hat, 1)).all()
        snr = 10 * math.log10(LONG.alpha_bar[step.t] / (1 - LONG.alpha_bar[step.t]))
        assert readout == f"t = {step.t:4d}   SNR {snr:6.1f} dB"


def test_the_channels_of_a_latent_lie_side_by_side_each_number_as_a_square():
    """Grey is 0, and 3 standard deviations are black and white."""
    explorer = LatentExplorer(in_latent, LONG, small_vae(1, channels=3))
    for place in (0, 49):
        latent = explorer.draw(place)[0]["x_t, the latent"]
        assert latent.shape == (10 * 28, 3 * 28)
        for (row, column), channel in np.ndenumerate(np.empty((10, 3))):
            channel = to_uint8(explorer.steps[place].xt[row, column] / 3)
            shown = latent[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
            assert np.array_equal(shown, np.kron(channel, np.ones((4, 4))))


def test_all_kinds_start_from_one_noise_and_part_on_the_way():
    explorer = LatentExplorer(in_latent, LONG, small_vae(1))
    first, last = explorer.steps[0].xt, explorer.steps[-1].x_prev
    assert all(torch.equal(first[0], other) for other in first)
    assert len({latent.numpy().tobytes() for latent in last}) == 10


def test_eta_changes_what_a_chain_in_the_latent_ends_in_but_not_its_start():
    explorer, ends, starts = LatentExplorer(in_latent, LONG, small_vae(1)), [], []
    for explorer.controls["eta"].value in (0.0, 0.5, 1.0):
        starts.append(explorer.draw(0)[0]["x_t, decoded"].tobytes())
        ends.append(explorer.draw(49)[0]["x0_hat, decoded"].tobytes())
    assert len(set(starts)) == 1 and len(set(ends)) == 3


@pytest.mark.parametrize("num_steps", [5, 10, 20, 50, 200, 1000])
def test_a_chain_in_the_latent_is_saved_in_20_frames_at_most(num_steps):
    explorer = LatentExplorer(in_latent, LONG, small_vae(1))
    assert num_steps in explorer.controls["num_steps"].options
    explorer.controls["num_steps"].value = num_steps
    film = explorer.filmstrip()
    assert explorer.slider.max == num_steps - 1 and min(num_steps, 10) <= len(film.readout) <= 20
    assert "t =  999 " in film.readout[0] and "t =    0 " in film.readout[-1]
    assert all(len(frames) == len(film.readout) for frames in film.panels.values())


# a chain on a map


@pytest.fixture(scope="module")
def numbers() -> AttentionAutoencoder:
    """An autoencoder as if it were trained, its latents standardised by other images, whose mean was another."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        autoencoder = AttentionAutoencoder(width=8).requires_grad_(False).eval()
        for parameter in autoencoder.parameters():  # larger than untrained ones: pictures of all greys
            torch.nn.init.normal_(parameter, std=0.15)
    z = autoencoder.encode(to_model(GARMENTS))
    autoencoder.shift.copy_(z.mean(dim=0) + 0.3 * z.std(dim=0))
    autoencoder.scale.copy_(z.std(dim=0))
    return autoencoder


def path_explorer(numbers: AttentionAutoencoder, **choice) -> PathExplorer:
    """A PathExplorer whose controls are set, one after the other."""
    explorer = PathExplorer(in_latent, LONG, numbers, GARMENTS, LABELS)
    for name, value in choice.items():
        explorer.controls[name].value = value
    return explorer


def test_the_path_explorer_opens_on_a_dress_half_of_the_way(numbers):
    explorer = path_explorer(numbers)
    assert [control.value for control in explorer.controls.values()] == ["Dress", 0, 50, 0.0]
    assert explorer.slider.max == 50 and explorer.slider.value == 25
    assert list(explorer.controls["label"].options) == list(CLASS_NAMES)


@pytest.mark.parametrize("choice", [{}, {"label": "Bag", "seed": 5, "num_steps": 10, "eta": 1.0}])
def test_the_path_explorer_shows_each_state_from_the_noise_to_the_sample_that_ddim_draws(numbers, choice):
    """Decoded, and what the network takes for the clean one, which is known here; the sample is its own."""
    explorer = path_explorer(numbers, **choice)
    label, seed, num_steps, eta = ({"label": "Dress", "seed": 0, "num_steps": 50, "eta": 0.0} | choice).values()
    generator, steps, y = torch.Generator().manual_seed(seed), [], torch.tensor([CLASS_NAMES.index(label)])
    x = torch.randn((1, 1, 8, 8), generator=generator)
    options = {"num_steps": num_steps, "eta": eta, "clip": math.inf, "watch": steps.append}
    sample = sample_ddim(in_latent, x, LONG, generator, y=y, **options)
    assert explorer.slider.max == num_steps == len(steps) and steps[0].xt.equal(x)
    for place in range(0, num_steps + 1, num_steps // 10):
        panels, readout = explorer.draw(place)
        step = steps[place] if place < num_steps else None
        z, z_hat = (step.xt, step.x0_hat) if step else (sample, sample)
        assert (panels["the state, decoded"] == pictures(numbers, z, 1)).all()
        np.testing.assert_allclose(panels["its x0_hat, decoded"].astype(int), pictures(numbers, z_hat, 1), atol=1)
        snr = step and 10 * math.log10(LONG.alpha_bar[step.t] / (1 - LONG.alpha_bar[step.t]))
        about = f"t = {step.t:4d}   SNR {snr:6.1f} dB" if step else "the sample"
        assert readout == f"{about}   {(z - x).norm().item():5.2f} from where it began"


def test_the_way_on_the_map_goes_through_the_latents_projected_as_the_garments_are(numbers):
    """Along the two directions in which standardised latents spread most; up to each state, and not beyond."""
    explorer = path_explorer(numbers, num_steps=10, label="Ankle boot", eta=1.0)
    z = numbers.to_latent(to_model(GARMENTS)).flatten(1)
    middle = z.mean(dim=0)
    axes = torch.linalg.svd(z - middle, full_matrices=False).Vh[:2].T
    axes = axes * (axes * explorer.axes).sum(dim=0).sign()  # a direction may as well be the opposite one
    figure = class_clouds((z - middle) @ axes, LABELS, CLASS_NAMES, size=336 / 75)
    figure.set_dpi(75)
    _, pixels = as_frame(figure, (explorer.path.flatten(1) - middle) @ axes)
    np.testing.assert_allclose(explorer.pixels, pixels, atol=0.5)
    assert explorer.map.shape == (336, 336, 3) and pixels.min() > 8 and pixels.max() < 328
    assert np.linalg.norm(np.diff(pixels, axis=0), axis=1).max() > 20  # half of it is no part of the dot
    for t in range(11):
        frame = explorer.draw(t)[0]["the way (ring: x0_hat)"]
        for x, y in ((pixels[:t] + pixels[1 : t + 1]) / 2).round().astype(int):  # half of the way to the next
            assert (frame[y - 1 : y + 2, x - 1 : x + 2] == 0).any(axis=(0, 1)).all()
        x, y = pixels[t].round().astype(int)
        assert (frame[y - 2 : y + 3, x - 2 : x + 3] == 0).all()


def test_at_the_noise_the_map_has_a_dot_there_and_a_ring_at_the_clean_latent_that_the_network_sees(numbers):
    explorer = path_explorer(numbers, label="Bag")
    frame, z = explorer.draw(0)[0]["the way (ring: x0_hat)"], explorer.path[:1]
    z_hat = 2 * torch.tanh(z + 0.3 * 8 - 0.999)
    dot, ring = explorer.place(torch.cat([z, z_hat])).numpy() * explorer.unit + explorer.origin
    assert np.linalg.norm(ring - dot) > 12
    y, x = (frame != explorer.map).any(axis=2).nonzero()
    from_dot, from_ring = (np.hypot(x - place[0], y - place[1]) for place in (dot, ring))
    assert (np.minimum(from_dot, abs(from_ring - 5)) < 7.5).all()
    assert (from_dot < 4).sum() > 40 and (abs(from_ring - 5) < 2).sum() > 40 and (from_ring < 3).sum() == 0


@pytest.mark.parametrize("choice", [{"label": "Bag"}, {"seed": 5}, {"num_steps": 20}, {"eta": 0.5}])
def test_another_kind_seed_number_of_steps_or_eta_walks_another_way_and_the_former_one_the_same_again(numbers, choice):
    """Seen at half of the way: what a chain starts from is the seed's alone."""
    explorer = path_explorer(numbers)

    def shown() -> list[bytes]:
        return [box.children[1].value for box in explorer.pictures.children]

    before, ((name, value),) = shown(), choice.items()
    former, explorer.controls[name].value = explorer.controls[name].value, value
    assert len(before) == 3 and all(now != then for now, then in zip(shown(), before, strict=True))
    explorer.controls[name].value = former
    assert shown() == before


@pytest.mark.parametrize("num_steps", [10, 20, 50, 200])
def test_a_path_is_saved_in_11_frames_from_the_noise_to_the_sample_within_400_kB(numbers, num_steps):
    explorer = path_explorer(numbers, num_steps=num_steps)
    film = explorer.filmstrip()
    assert num_steps in explorer.controls["num_steps"].options and len(film.readout) == 11
    assert film.readout[0].startswith("t =  999 ") and film.readout[-1].startswith("the sample ")
    assert film.readout[0].endswith(" 0.00 from where it began")
    assert len(film._repr_html_()) < 400_000


def test_the_path_explorer_leaves_the_global_generator_and_its_data_alone(numbers):
    rng, garments = torch.get_rng_state(), GARMENTS.clone()
    path_explorer(numbers, eta=1.0).filmstrip()
    assert torch.equal(torch.get_rng_state(), rng) and torch.equal(GARMENTS, garments)


def test_a_picture_of_few_colours_is_packed_and_stays_as_it_is():
    few, many = (noise(60, 60, 3) // 64 * 64, noise(60, 60, 3))
    assert len(np.unique(few.reshape(-1, 3), axis=0)) == 64
    for frame in (few, many):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(player.encode_png(frame))).convert("RGB")), frame
        )
    assert len(player.encode_png(few)) < 0.4 * len(player.encode_png(many))


# guidance


def clean(xt, t, y=None):
    """The picture that `undecided` sees behind the noise: the higher the label, the brighter; without one, dark."""
    kind = torch.full_like(t, -4) if y is None else y
    return torch.tanh(xt + (0.15 * kind - 0.01 * t).reshape(-1, 1, 1, 1))


def undecided(xt, t, y=None):
    """A denoiser that sees each pixel, the step and the label, or that there is none."""
    return eps_from_x0(xt, t, clean(xt, t, y), CHAIN)


class Says:
    """A classifier that takes the first 5 of 12 images for shirts and the others for bags, and keeps what it saw."""

    def __init__(self):
        self.seen = []

    def __call__(self, x):
        self.seen.append(x)
        return torch.eye(10)[[6] * 5 + [8] * 7]


def guidance_explorer(**choice) -> GuidanceExplorer:
    """A GuidanceExplorer whose controls are set, one after the other."""
    explorer = GuidanceExplorer(undecided, CHAIN, Says(), GARMENTS, LABELS)
    for name, value in choice.items():
        explorer.controls[name].value = value
    return explorer


def guided_chain(label: str = "Shirt", w: float = 2.0, seed: int = 0, num_steps: int = 20) -> list:
    """The steps of DDIM with eps_null + w (eps_y - eps_null), twelve pictures of one kind, from the noise of a seed."""

    def model(xt, t, y):
        return undecided(xt, t) + w * (undecided(xt, t, y) - undecided(xt, t))

    x, steps = torch.randn((12, 1, 28, 28), generator=torch.Generator().manual_seed(seed)), []
    y = torch.full((12,), CLASS_NAMES.index(label))
    sample_ddim(model, x, CHAIN, num_steps=num_steps, y=y, watch=steps.append)
    return steps


def twelve(x: torch.Tensor) -> np.ndarray:
    return tile(to_uint8(x), columns=4).numpy()


def near(frame: np.ndarray, x: torch.Tensor) -> bool:
    """Tell whether a frame shows x, where x was calculated otherwise: rounding may fall to either side."""
    return np.abs(frame.astype(int) - twelve(x).astype(int)).max() <= 1


def all_panels(explorer: Explorer) -> list[bytes]:
    """All pictures of all steps, and what is written below them."""
    drawn = [explorer.draw(t) for t in range(explorer.slider.max + 1)]
    return [part for panels, readout in drawn for part in (readout, *(frame.tobytes() for frame in panels.values()))]


CHOICES = [{}, {"label": "Bag", "seed": 7}, {"w": 0.5, "num_steps": 10}, {"w": 8.0, "label": "Dress", "num_steps": 50}]
PANELS = ["x_t", "x0_hat with the label", "x0_hat without", "with - without", "x0_hat, guided"]


def test_the_guidance_explorer_opens_on_shirts_guided_twice_as_far_half_of_the_way():
    explorer = guidance_explorer()
    assert [control.value for control in explorer.controls.values()] == ["Shirt", 2.0, 0, 20]
    assert list(explorer.controls) == ["label", "w", "seed", "num_steps"]
    assert list(explorer.controls["label"].options) == list(CLASS_NAMES)
    assert explorer.slider.value == 9 and explorer.slider.max == 19
    other = GuidanceExplorer(undecided, CHAIN, Says(), GARMENTS, LABELS, label="Bag", seed=5)
    assert all_panels(other) == all_panels(guidance_explorer(label="Bag", seed=5))


@pytest.mark.parametrize("choice", CHOICES)
def test_the_chain_is_that_of_the_guided_model_and_x_t_and_its_guess_are_what_each_step_saw(choice):
    explorer, steps = guidance_explorer(**choice), guided_chain(**choice)
    assert len(explorer.steps) == len(steps) == explorer.slider.max + 1
    for place, step in enumerate(steps):
        panels, readout = explorer.draw(place)
        assert list(panels) == PANELS
        assert (panels["x_t"] == twelve(step.xt)).all()
        assert (panels["x0_hat, guided"] == twelve(step.x0_hat)).all()
        snr = 10 * math.log10(CHAIN.alpha_bar[step.t] / (1 - CHAIN.alpha_bar[step.t]))
        assert readout.startswith(f"t = {step.t:4d}   SNR {snr:6.1f} dB   ")
    assert [steps[0].t, steps[-1].t] == [49, 0]


@pytest.mark.parametrize("choice", CHOICES)
def test_with_and_without_the_label_are_the_clean_pictures_that_the_two_predictions_imply(choice):
    """Both of the same x_t, the guided chain's; and guidance goes w times as far, as far as pixels go."""
    explorer = guidance_explorer(**choice)
    w, y = choice.get("w", 2.0), torch.full((12,), CLASS_NAMES.index(choice.get("label", "Shirt")))
    for place in (0, 3, explorer.slider.max):
        panels, step = explorer.draw(place)[0], explorer.steps[place]
        t = torch.full((12,), step.t)
        label, none = clean(step.xt, t, y), clean(step.xt, t)
        expected = [step.xt, label, none, label - none, none + w * (label - none)]
        assert all(near(panels[title], x) for title, x in zip(PANELS, expected, strict=True))
        assert len({panels[title].tobytes() for title in PANELS}) == 5
    assert w < 2 or (expected[-1] > 1).any()


def test_the_guided_guess_is_clipped_on_the_way():
    explorer = guidance_explorer(w=8.0)
    assert all(step.x0_hat.abs().max() <= 1 for step in explorer.steps)
    assert explorer.steps[10].x0_hat.max() == 1


def test_at_w_1_it_is_the_model_with_labels_and_at_w_0_without():
    x = torch.randn((12, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    for w, y in ((1.0, torch.full((12,), 6)), (0.0, None)):
        explorer = guidance_explorer(w=w)
        expected = sample_ddim(undecided, x, CHAIN, num_steps=20, y=y)
        assert torch.equal(explorer.steps[-1].x_prev, expected)
        for place in range(20):
            panels, _ = explorer.draw(place)
            title = "x0_hat without" if y is None else "x0_hat with the label"
            assert np.abs(panels["x0_hat, guided"].astype(int) - panels[title]).max() <= 1


@pytest.mark.parametrize("w", GuidanceExplorer.scales)
def test_every_w_that_is_offered_guides_by_as_much(w):
    explorer = guidance_explorer(w=w)
    assert {0.0, 1.0} < set(explorer.controls["w"].options) == set(GuidanceExplorer.scales)
    torch.testing.assert_close(explorer.steps[-1].x_prev, guided_chain(w=w)[-1].x_prev, rtol=0, atol=1e-4)


@pytest.mark.parametrize("label, right", [("Shirt", 5), ("Bag", 7), ("Dress", 0)])
def test_the_readout_counts_what_the_classifier_takes_for_the_kind_and_says_how_far_samples_and_garments_spread(
    label, right
):
    explorer = guidance_explorer(label=label)
    x0 = guided_chain(label)[-1].x_prev
    real = GARMENTS[CLASS_NAMES.index(label) == LABELS].double() / 127.5 - 1
    spreads = [((x - x.mean(0)).square().sum(0) / (len(x) - 1)).sqrt().mean().item() for x in (x0, real)]
    expected = "{} of 12 look like their kind   spread {:.2f}, of real ones {:.2f}".format(right, *spreads)
    assert all(explorer.draw(place)[1].endswith(f" dB   {expected}") for place in range(20))
    assert f"{expected}</code>" in explorer.readout.value
    assert torch.equal(explorer.classifier.seen[-1], x0) and f"{spreads[0]:.2f}" != f"{spreads[1]:.2f}"


@pytest.mark.parametrize("choice", [{"label": "Bag"}, {"w": 5.0}, {"seed": 3}, {"num_steps": 50}])
def test_another_kind_w_seed_or_number_of_steps_draws_other_pictures_and_the_former_one_the_same_again(choice):
    explorer = guidance_explorer()
    before, shown = all_panels(explorer), [box.children[1].value for box in explorer.pictures.children]
    ((name, value),) = choice.items()
    former, explorer.controls[name].value = explorer.controls[name].value, value
    place = explorer.slider.value
    assert place == round(9 / 19 * explorer.slider.max) and explorer.slider.max == choice.get("num_steps", 20) - 1
    frames = [decode(box.children[1].value) for box in explorer.pictures.children]
    assert all(np.array_equal(*pair) for pair in zip(frames, explorer.draw(place)[0].values(), strict=True))
    changed = [box.children[1].value != png for box, png in zip(explorer.pictures.children, shown, strict=True)]
    assert all(changed) and all_panels(explorer) == all_panels(guidance_explorer(**choice)) != before
    explorer.controls[name].value = former
    assert all_panels(explorer) == before


def test_the_seed_alone_decides_the_noise_that_all_kinds_and_all_w_start_from():
    start = guidance_explorer(seed=3).steps[0].xt
    for choice in ({"label": "Bag"}, {"w": 0.0}, {"num_steps": 50}):
        assert torch.equal(guidance_explorer(seed=3, **choice).steps[0].xt, start)
    assert len(start.unique(dim=0)) == 12 and not torch.equal(guidance_explorer(seed=4).steps[0].xt, start)


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_the_slider_goes_over_all_steps_of_the_guided_chain(num_steps):
    explorer = guidance_explorer()
    assert list(explorer.controls["num_steps"].options) == [10, 20, 50]
    explorer.controls["num_steps"].value = num_steps
    assert explorer.slider.min == 0 and explorer.slider.max == num_steps - 1
    for place, words in ((0, "t =   49 "), (num_steps - 1, "t =    0 ")):
        explorer.slider.value = place
        assert words in explorer.readout.value


@pytest.mark.parametrize("num_steps", [10, 20, 50])
def test_guidance_is_saved_in_six_frames_of_five_panels_of_three_rows_of_four(num_steps):
    film = guidance_explorer(num_steps=num_steps).filmstrip()
    assert list(film.panels) == PANELS and film.height == 168
    assert all(frames.shape == (6, 3 * 28, 4 * 28) for frames in film.panels.values())
    assert "t =   49 " in film.readout[0] and "t =    0 " in film.readout[-1] and len(set(film.readout)) == 6


def test_the_saved_guidance_explorer_stays_within_400_kB_and_holds_the_six_frames():
    explorer = guidance_explorer()
    page = explorer._repr_mimebundle_()["text/html"]
    assert page == explorer.filmstrip(6)._repr_html_() and len(page) < 400_000


def test_the_guidance_explorer_leaves_the_global_generator_and_its_data_alone():
    rng, garments, labels = torch.get_rng_state(), GARMENTS.clone(), LABELS.clone()
    guidance_explorer(label="Bag", w=3.0).filmstrip()
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(GARMENTS, garments) and torch.equal(LABELS, labels)


# the loss while it trains


def test_the_live_loss_is_one_picture_that_changes(monkeypatch):
    shown = []
    handle = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(player, "display", lambda figure, display_id: shown.append(figure) or handle)
    live, history = LiveLoss(), []
    for step in (1, 2, 3):
        history.append({"step": step, "loss": 1 / step})
        live(history)
    assert len(shown) == 1  # the second and third came too soon
    history.append({"step": 4, "loss": 0.2, "validation": {"loss": 0.3}})
    live(history)
    (axis,) = shown[1].axes
    training, validation = axis.lines
    assert training.get_ydata().tolist() == pytest.approx([1, 1 / 2, 1 / 3, 0.2])
    assert validation.get_ydata()[-1] == pytest.approx(0.3) and math.isnan(validation.get_ydata()[0])


def test_the_live_loss_is_drawn_again_after_half_a_second_and_at_a_validation_at_once(monkeypatch):
    clock, shown = [100.0], []
    monkeypatch.setattr(player, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(player, "display", lambda figure, display_id: shown.append(figure) or handle)
    handle = SimpleNamespace(update=shown.append)
    live, history = LiveLoss(), []
    for seconds, validation, drawn in ((0, {}, 1), (0.4, {}, 1), (0.2, {}, 2), (0.1, {"loss": 0.3}, 3), (0.4, {}, 3)):
        clock[0] += seconds
        history.append({"step": len(history) + 1, "loss": 0.5} | ({"validation": validation} if validation else {}))
        live(history)
        assert len(shown) == drawn
    assert [len(figure.axes[0].lines[0].get_ydata()) for figure in shown] == [1, 3, 4], "each holds all there is"
