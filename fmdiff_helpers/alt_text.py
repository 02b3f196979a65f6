"""Alternative texts: what each figure of a lesson says to a reader who hears it instead of seeing it.

IPython shows a figure as a PNG, to which neither JupyterLab nor nbconvert gives a text. Here it becomes an HTML picture
with a text made from its titles, axes, legends and labels. `figure.set_label` puts words of one's own before these.
"""

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox
from matplotlib.patches import Circle, Rectangle
from matplotlib.quiver import Quiver
from matplotlib.ticker import FixedLocator

from fmdiff_helpers.ticks import plain_number

if TYPE_CHECKING:  # a server can do without
    from IPython.core.interactiveshell import InteractiveShell

LONGEST = 400  # characters: who hears a text cannot skim it
FORMS = {Line2D: "curves", PathCollection: "points", Rectangle: "bars", BarContainer: "bars"}
FORMS |= {Quiver: "arrows", object: "outlines"}  # the first that fits counts


def listing(words: Iterable[str], most: int) -> str:
    """Return words with commas or semicolons between them; of more than `most` only the first ones and the last."""
    words = [word.replace("$", "").replace("\n", " ") for word in words if word]
    between = "; " if any("," in word for word in words) else ", "
    return between.join(words if len(words) <= most else [*words[: most - 1], f"and so on to {words[-1]}"])


def heard(x: float, largest: float, scale: str) -> str:
    """Return a number on an axis. Beside 1, one like 0.0001 looks like 0, but not on a logarithmic scale."""
    return plain_number(0 if abs(x) < 0.001 * abs(largest) and scale != "log" else x)


def path_of(line: Line2D, scale: str) -> str:
    """Return where a line starts and ends, and its lowest and highest points if they lie well beyond these two."""
    points = np.asarray(line.get_xydata())
    x, y = np.transpose(points[np.isfinite(points).all(axis=1)])
    if len(y) < 2:
        return "at " + plain_number(y[0]) if len(y) else "without values"
    texts = [heard(value, np.abs(y).max(), scale) for value in y]
    low, high, margin = *sorted((y[0], y[-1])), 0.05 * np.ptp(y)
    least, most = y.argmin(), y.argmax()
    down = f", down to {texts[least]} at {plain_number(x[least])}" if y[least] < low - margin else ""
    up = f", up to {texts[most]} at {plain_number(x[most])}" if y[most] > high + margin else ""
    ends_alike = texts[0] == texts[-1] and not down + up
    return f"at {texts[0]}" if ends_alike else f"from {texts[0]} to {texts[-1]}{down}{up}"


def named_parts(axes: Axes, most: int) -> list[str]:
    """Return the names in a legend, by what they name: curves, points, bars, outlines; of few curves also the path."""
    handles, names = axes.get_legend_handles_labels()
    in_numbers = not (axes.xaxis.have_units() or axes.yaxis.have_units())  # but in words, or days
    few, parts = len(names) <= min(4, most) and in_numbers, {}
    for handle, name in zip(handles, names, strict=True):
        form = next(form for kind, form in FORMS.items() if isinstance(handle, kind))
        path = f", {path_of(handle, axes.get_yscale())}" if form == "curves" and few else ""
        parts.setdefault(form, []).append(name + path)
    legend = axes.get_legend()
    if legend and not names:
        parts["colours"] = [text.get_text() for text in legend.get_texts()]
    return [f"{form}: {listing(words, most)}" for form, words in parts.items()]


def nameless_parts(axes: Axes) -> list[str]:
    """Return how many bars, points, shapes, lines, circles and small pictures without a name there are."""
    points = [c for c in axes.collections if isinstance(c, PathCollection) and str(c.get_label()).startswith("_")]
    lines = [line for line in axes.lines if str(line.get_label()).startswith("_") and len(line.get_xdata()) > 2]
    bars = [bar for bars in axes.containers if isinstance(bars, BarContainer) for bar in bars]
    named = axes.get_legend_handles_labels()[0]
    counts = {
        "bar": 0 if named else len(bars),
        "point": sum(len(cloud.get_offsets()) for cloud in points),
        "shape": sum(isinstance(c, PolyCollection) and not isinstance(c, Quiver) for c in axes.collections),
        "line": len(lines),
        "circle": sum(isinstance(patch, Circle) for patch in axes.patches),
        "small picture": sum(isinstance(artist, AnnotationBbox) for artist in axes.artists),
    }
    return [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]


def stands_for(text: str, place: float) -> bool:
    """Tell whether the text of a tick is the number at which the tick stands."""
    try:
        return bool(np.isclose(float(text.replace("\N{MINUS SIGN}", "-")), place, rtol=0.01))
    except ValueError:
        return False


def tick_words(axis: Axis) -> list[str]:
    """Return the tick labels that are words or days, or that someone has written in place of the axis's numbers."""
    texts = [label.get_text() for label in axis.get_ticklabels()]
    if axis.have_units():
        return [text for text in texts if text]
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return []
    same = all(stands_for(text, place) for text, place in zip(texts, axis.get_ticklocs(), strict=True))
    return [] if same else [text for text in texts if text]


def axis_part(name: str, axis: Axis, most: int) -> list[str]:
    """Return the label of an axis and what it spans: the range of the data as far as it is shown, or its words."""
    label, words = axis.get_label_text(), tick_words(axis)
    data, view = sorted(axis.get_data_interval()), sorted(axis.get_view_interval())
    low, high = max(data[0], view[0]), min(data[1], view[1])
    low, high = (low, high) if low < high else view
    low, high = (high, low) if axis.get_inverted() else (low, high)
    ends = [heard(end, max(abs(low), abs(high)), axis.get_scale()) for end in (low, high)]
    span = listing(words, most) if words else " to ".join(ends) + ", logarithmic" * (axis.get_scale() == "log")
    return [f"{name}: {label + ', ' if label else ''}{span}"] if label or words else []


def picture_parts(axes: Axes, most: int) -> list[str]:
    """Return the size of a grid of pictures and the labels of its columns and rows; of one picture its pixels."""
    (picture, *_), (rows, columns) = axes.images, (axes.yaxis, axes.xaxis)
    is_grid = isinstance(columns.get_major_locator(), FixedLocator)  # other axes number the pixels
    labels = {"columns": columns.get_ticklabels(), "rows": rows.get_ticklabels()} if is_grid else {}
    _, right, bottom, _ = picture.get_extent()
    if not is_grid:
        sizes = np.shape(picture.get_array())[:2]
    elif right == int(right):  # `image_grid` counts in images
        sizes = int(bottom), int(right)
    else:  # others count in pixels, and label all rows and columns
        sizes = len(labels["rows"]), len(labels["columns"])
    counts = [f"{size} {name}{'s' * (size > 1)}" for size, name in zip(sizes, ("row", "column"), strict=True) if size]
    named = {name: listing((tick.get_text() for tick in ticks), most) for name, ticks in labels.items()}
    size = f"picture{'s' * is_grid} in {' and '.join(counts)}"
    return [size, *(f"{name}: {words}" for name, words in named.items() if words)]


def chart_parts(axes: Axes, most: int) -> list[str]:
    """Return what one pair of axes shows."""
    if axes.images:
        parts = picture_parts(axes, most)
    else:
        parts = named_parts(axes, most) + nameless_parts(axes)
        parts += axis_part("horizontal axis", axes.xaxis, most) + axis_part("vertical axis", axes.yaxis, most)
    texts = dict.fromkeys(text.get_text() for text in axes.texts)
    words = listing((text for text in texts if not text.replace(".", "").isdigit()), most)
    return parts + [f"written in it: {words}"] * bool(words)


def figure_parts(figure: Figure, most: int) -> list[str]:
    """Return what a figure shows; what several charts have in common is said once, at the end."""
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    charts = [axes for axes in figure.axes if axes not in bars]
    parts = [chart_parts(axes, most) for axes in charts]
    common = [part for part in parts[0] if all(part in others for others in parts)] if parts else []
    heads = [figure.get_label(), figure.get_suptitle(), f"{len(charts)} charts" if len(charts) > 1 else ""]
    own = []
    for k, (axes, found) in enumerate(zip(charts, parts, strict=True), 1):
        title = f"chart {k}, {axes.get_title()}" if len(charts) > 1 else axes.get_title()
        own += [title.removesuffix(", "), *(part for part in found if part not in common)]
    scales = [part for axes in bars for part in axis_part("grey scale", axes.yaxis, most)]
    return [part for part in [*heads, *own, *common, *scales] if part]


def describe(figure: Figure) -> str:
    """Return a text of at most 400 characters that says what a figure shows; longer lists are shortened first."""
    for most in (12, 6, 3, 2):
        parts = figure_parts(figure, most) or ["chart without words"]
        text = " ".join(part[0].upper() + part[1:] + "." * (part[-1] not in ".?!") for part in parts)
        if len(text) <= LONGEST:
            return text
    return text[: LONGEST - 3].rsplit(" ", 1)[0] + "..."


def as_html(figure: Figure) -> dict[str, str]:
    """Return a figure as IPython shows it: a picture with its alternative text; nothing if it is empty."""
    from IPython.core.pylabtools import print_figure

    picture = print_figure(figure, base64=True)
    if picture is None:
        return {}
    try:
        text = describe(figure)
    except Exception:  # whatever else someone draws: it must be seen, if not heard
        text = "a figure"
    page = f'<img alt="{html.escape(text)}" src="data:image/png;base64,{picture}">'
    return {"text/html": page, "text/plain": text}


def give_alt_texts(shell: "InteractiveShell") -> None:
    """Show all figures of an IPython session as `as_html` says, and no more as PNG, whoever draws them."""
    from matplotlib_inline.config import InlineBackend

    InlineBackend.instance(parent=shell).figure_formats = set()
    shell.display_formatter.mimebundle_formatter.for_type(Figure, lambda figure, **_: as_html(figure))
