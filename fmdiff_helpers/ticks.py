"""Numbers on an axis as a person reads them: 0.01, not a power of ten."""

import numpy as np
from matplotlib.axis import Axis
from matplotlib.ticker import LogFormatter


def plain_number(x: float) -> str:
    """Return a number without an exponent: a whole one as it is, others in three digits. 4096, 0.0123, 57.3."""
    return np.format_float_positional(x if x == round(x) else float(f"{x:.3g}"), trim="-")


class PlainNumbers(LogFormatter):
    """Label those ticks of a logarithmic axis that matplotlib would label, but with plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick, or an empty string."""
        return plain_number(x) if super().__call__(x, pos) else ""


def label_plainly(*axes: Axis) -> None:
    """Write plain numbers at the ticks of those axes that are logarithmic."""
    for axis in axes:
        if axis.get_scale() == "log":
            axis.set_major_formatter(PlainNumbers())
            axis.set_minor_formatter(PlainNumbers())
