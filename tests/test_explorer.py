"""The claims of fmdiff_helpers.explorer: an explorer shows the step of its slider, and a step is drawn once."""

import math
from collections import Counter
from types import SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from test_filmstrip import decode

from fmdiff_helpers import explorer as module
from fmdiff_helpers.explorer import Explorer, LiveLoss


class Counting(Explorer):
    """Shows t as a picture and counts; T below zero cannot be prepared and T = 13 cannot be drawn."""

    def __init__(self):
        self.prepared, self.drawn, self.locks = [], Counter(), []
        super().__init__(T=widgets.IntText(value=101), colour=widgets.Dropdown(options=["grey", "<b>"]))

    def prepare(self) -> int:
        T = self.controls["T"].value
        assert not torch.is_grad_enabled(), "or it would keep what gradients need"
        self.prepared.append(T)
        self.drawn.clear()
        self.locks.append(self.disabled())
        if T < 0:
            raise RuntimeError(f"T is <{T}>")
        return T

    def render(self, t: int):
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


@pytest.fixture
def explorer() -> Counting:
    return Counting()


def test_the_pictures_of_the_slider_s_step_are_swapped_in_place(explorer):
    """New widgets for each step would flicker and would fill the memory of the browser."""
    before = explorer.pictures.children
    assert explorer.shown() == 0
    for t in (7, 100, 0):
        explorer.slider.value = t
        assert explorer.shown() == t and f"t = {t} &lt;&amp;&gt;" in explorer.readout.value
    explorer.controls["colour"].value = "<b>"
    assert before[0].children[0].value == "x &lt;t&gt;" and explorer.pictures.children == before


def test_a_step_is_drawn_once_for_each_choice(explorer):
    for t in (5, 9, 5, 0, 9):
        explorer.slider.value = t
    assert explorer.drawn == {0: 1, 5: 1, 9: 1} and explorer.prepared == [101]
    explorer.controls["colour"].value = "<b>"
    assert explorer.prepared == [101, 101] and explorer.drawn == {9: 1}, "the pictures of the last choice are gone"
    explorer.slider.value = 5
    assert explorer.drawn == {9: 1, 5: 1}


@pytest.mark.parametrize("opens_at, value", [(0.0, 0), (0.25, 25), (1 / 3, 33), (0.999, 99), (1.0, 100)])
def test_it_opens_at_its_share_of_the_slider_and_draws_only_that_step(monkeypatch, opens_at, value):
    monkeypatch.setattr(Counting, "opens_at", opens_at)
    explorer = Counting()
    assert explorer.slider.value == explorer.shown() == value and explorer.drawn == {value: 1}
    explorer.controls["T"].value = 11
    assert explorer.slider.value == round(value / 10), "only the first choice opens there"


@pytest.mark.parametrize("T", [2, 50, 51, 52, 101, 200, 1000])
def test_play_runs_evenly_from_the_first_step_to_the_last_in_50_frames_at_most(explorer, T):
    explorer.controls["T"].value = T
    steps = []
    for frame in range(explorer.play.max + 1):
        explorer.play.value = frame
        assert explorer.play.value == frame, "or the film would stand still"
        assert explorer.shown() == explorer.slider.value % 256
        steps.append(explorer.slider.value)
    assert steps[0] == 0 and steps[-1] == T - 1 and len(set(steps)) == min(T, 51)
    assert np.ptp(np.diff(steps)) <= 1


def test_the_slider_reaches_every_step_and_moves_the_play_button(explorer):
    for t in range(101):
        explorer.slider.value = t
        assert explorer.slider.value == t and explorer.play.value == round(t / 2)


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_a_choice_keeps_the_relative_place_and_draws_one_step(explorer, share):
    for T in (51, 101, 1001, 3, 101):
        explorer.slider.value = round(share * explorer.slider.max)
        explorer.controls["T"].value = T
        assert explorer.slider.max == T - 1 and explorer.slider.value == round(share * (T - 1))
        assert explorer.shown() == explorer.slider.value % 256 and sum(explorer.drawn.values()) == 1


def test_controls_are_locked_while_a_choice_is_prepared_and_free_after(explorer):
    explorer.controls["colour"].value = "<b>"
    assert explorer.locks == [[True] * 4] * 2 and explorer.disabled() == [False] * 4


@pytest.mark.parametrize("T, message", [(-1, "T is &lt;-1&gt;"), (13, "13 is &lt;unlucky&gt;")])
def test_a_choice_that_fails_says_why_and_leaves_the_controls_free(explorer, T, message):
    with pytest.raises(RuntimeError):
        explorer.controls["T"].value = T
    assert explorer.readout.value == f"RuntimeError: {message}"
    assert explorer.disabled() == [False] * 4 and explorer.locks[-1] == [True] * 4
    explorer.controls["T"].value = 21
    assert explorer.slider.max == 20 and "t = 0" in explorer.readout.value


def test_a_chain_of_one_step_works_and_can_be_left(explorer):
    explorer.controls["T"].value = 1
    assert explorer.slider.max == 0 and explorer.shown() == 0
    film = explorer.filmstrip()
    assert film.fps == 1 and film.readout == ["t = 0 <&>"]
    explorer.controls["T"].value = 11
    assert explorer.slider.max == 10 and explorer.shown() == 0


def test_an_explorer_keeps_a_bounded_number_of_frames(explorer):
    """A frame with a histogram takes 150 kB, and a widget lives as long as its kernel."""
    explorer.controls["T"].value = 1000
    for t in range(1000):
        explorer.slider.value = t
    assert explorer.frame.cache_info().currsize <= 256


@pytest.mark.parametrize("num_frames, steps", [(2, [0, 100]), (5, [0, 25, 50, 75, 100]), (999, list(range(101)))])
def test_a_filmstrip_of_an_explorer_runs_evenly_from_the_first_step_to_the_last(explorer, num_frames, steps):
    explorer.slider.value = 60
    film = explorer.filmstrip(num_frames)
    assert film.panels["x <t>"][:, 0, 0].tolist() == steps
    assert film.readout == [f"t = {t} <&>" for t in steps]
    assert steps[film.start] == min(steps, key=lambda t: abs(t - 60)), "it starts where the slider is"
    assert explorer.slider.value == 60 and film.height == explorer.height


@pytest.mark.parametrize("num_frames", [-3, 0, 1])
def test_a_film_without_a_first_and_a_last_step_is_an_error(explorer, num_frames):
    with pytest.raises(ValueError, match=f"num_frames is {num_frames}; expected at least 2"):
        explorer.filmstrip(num_frames)


@pytest.mark.parametrize("num_frames, fps", [(2, 1), (3, 1), (7, 3), (11, 5), (20, 10), (40, 10)])
def test_a_film_plays_at_ten_frames_a_second_and_a_short_one_slower_so_that_it_lasts(explorer, num_frames, fps):
    assert explorer.filmstrip(num_frames).fps == fps and num_frames / fps >= 2


def test_a_notebook_gets_the_live_widget_and_a_filmstrip_in_its_place(explorer):
    bundle = explorer._repr_mimebundle_(include=None, exclude=None)
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", "text/html", "text/plain"}
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view == {"version_major": 2, "version_minor": 0, "model_id": explorer.view.model_id}
    assert bundle["text/html"] == explorer.filmstrip()._repr_html_()
    assert bundle["text/plain"] == "Counting", "and no address in memory, which would change with each run"


def test_the_live_loss_is_one_picture_drawn_again_after_half_a_second_and_at_a_validation_at_once(monkeypatch):
    clock, shown = [100.0], []
    handle = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(module, "display", lambda figure, display_id: shown.append(figure) or handle)
    live, run = LiveLoss(), SimpleNamespace(history=[])
    for seconds, validation, drawn in ((0, 0, 1), (0.4, 0, 1), (0.2, 0, 2), (0.1, 0.3, 3), (0.4, 0, 3)):
        clock[0] += seconds
        point = {"step": len(run.history) + 1, "loss": 1 / (len(run.history) + 1)}
        run.history.append(point | ({"validation": {"loss": validation}} if validation else {}))
        live(run)
        assert len(shown) == drawn
    second, third = ([line.get_ydata().tolist() for line in figure.axes[0].lines] for figure in shown[1:])
    assert second[0] == pytest.approx([1, 1 / 2, 1 / 3]), "all there is, also what was not drawn"
    assert third[0] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert math.isnan(third[1][0]) and third[1][-1] == pytest.approx(0.3)
