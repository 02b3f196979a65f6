"""The controls of the explorers: lists, number boxes and a slider, which refuse what they do not offer.

Only ipywidgets calls that 7.7 (Colab) and 8 share.
"""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
from traitlets import HasTraits, validate

from fmdiff_helpers.data import CLASS_NAMES
from fmdiff_helpers.dials import LARGEST_SEED, check_whole
from fmdiff_helpers.drawing import Drawer, find_kind


def dropdown(description: str, options: Sequence, value: object) -> widgets.Dropdown:
    """Return a list of options of which `value` is chosen."""
    return widgets.Dropdown(options=options, value=value, description=description, layout={"width": "200px"})


def kind_list(description: str, what: str, kind: str | int) -> widgets.Dropdown:
    """Return a list of the ten kinds, opened on `kind`; ValueError, which calls it `what`, if it is none of them."""
    return dropdown(description, CLASS_NAMES, CLASS_NAMES[find_kind(kind, what)])


def steps_list(drawer: Drawer, options: Sequence[int], value: int) -> widgets.Dropdown:
    """Return a list of numbers of steps, opened on the number of the drawer, or on `value` if the drawer has none."""
    value = drawer.num_steps or value
    return dropdown("steps", sorted({*options, value}), value)


class WithinRange(HasTraits):
    """Refuse a number beyond the ends, where ipywidgets takes the nearest one and says nothing."""

    @validate("value")
    def _validate_value(self: Any, proposal: dict) -> int:
        check_whole(self.description, proposal["value"], self.min, self.max)
        return proposal["value"]


class StepSlider(WithinRange, widgets.IntSlider):
    """A slider over steps."""


class NumberBox(WithinRange, widgets.BoundedIntText):
    """A box for a whole number."""

    def among(self, number: int) -> int:
        """Return the value, 0 to `number` - 1, and offer no others; a value beyond them becomes the last of them."""
        self.max = number - 1
        return self.value


def number_box(description: str, value: int = 0) -> NumberBox:
    """Return a box for a whole number, such as a seed; ValueError if `value` is none, or beyond `LARGEST_SEED`."""
    check_whole(description, value, 0, LARGEST_SEED)  # the box would take 1.5 as 1
    return NumberBox(value=value, min=0, max=LARGEST_SEED, description=description, layout={"width": "200px"})
