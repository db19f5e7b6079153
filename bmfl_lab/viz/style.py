"""One look for all static figures: colour-blind-safe colours, readable sizes, no chart junk."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

# Okabe & Ito (2008), ordered so that neighbours differ in lightness as well as in hue.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", ">", "X", "*")
GREY = "#6B6B6B"

_RC = {
    "figure.dpi": 110,
    "savefig.dpi": 150,
    "savefig.bbox": "tight",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#E3E3E3",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Apply the house style to figures made inside the block."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def colours(names: Iterable[str]) -> dict[str, str]:
    """Return one colour for each name, in order; colours repeat after eight, markers tell them apart then."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}


def markers(names: Iterable[str]) -> dict[str, str]:
    """Return one marker for each name, in order."""
    return {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(names)}


def ink_on(colour: Sequence[float]) -> str:
    """Return "black" or "white", whichever stands out more from a colour (red, green, blue from 0 to 1).

    References
    ----------
    WCAG 2.1, relative luminance and contrast ratio.
    """
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    # the contrast to black is (luminance + 0.05) / 0.05, that to white 1.05 / (luminance + 0.05)
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"
