"""How the study's pictures look, and how they are written with the same bytes every time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import rcsetup
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from gptmill.files import atomic_file

COLORS = ("#2456c9", "#c2510c", "#0f766e", "#7c3aed", "#be185d", "#4d7c0f")
GREY = "#64748b"
INK = "#16202c"
matplotlib.rcParams.update(
    {
        "font.size": 8.5,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#9aa7b8",
        "axes.labelcolor": INK,
        "axes.prop_cycle": rcsetup.cycler(color=COLORS),
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#e9ecf1",
        "legend.frameon": False,
        "legend.fontsize": 8,
        "text.parse_math": False,  # a dollar in a text is a dollar
    }
)


def panels(
    rows: int = 1, columns: int = 1, width: float = 7.2, height: float = 3.2, **ratios: list[float]
) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its axes, row by row."""
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=ratios)
    return figure, list(axes.flat)


def heat(
    axes: Axes, matrix: np.ndarray, vmin: float | None = None, vmax: float | None = None
) -> None:
    """A matrix as shades of blue, its first row on top, without axes."""
    axes.imshow(matrix, cmap="Blues", aspect="auto", interpolation="nearest", vmin=vmin, vmax=vmax)
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])


def causal_heat(axes: Axes, weights: np.ndarray) -> None:
    """Attention weights [T, T]: small ones made visible, the hidden upper triangle grey."""
    hidden = np.triu(np.ones(weights.shape, bool), k=1)
    shades = matplotlib.colormaps["Blues"].with_extremes(bad="#e9ecf1")
    shown = np.ma.masked_where(hidden & (weights == 0), weights)
    axes.imshow(shown, cmap=shades, norm=PowerNorm(0.5, 0, 1), aspect="auto")
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])


def log_axis(axis: XAxis | YAxis) -> None:
    """Powers of ten written as 1e-05."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def bars(axes: Axes, names: Sequence[str], values: Sequence[float], shown: Sequence[str]) -> None:
    """Horizontal bars, the first on top, each with its value written at its end."""
    places = np.arange(len(names))
    axes.barh(places, values, color=[COLORS[0]] * len(names), height=0.65)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.22)
    axes.locator_params(axis="x", nbins=4)
    for place, value, text in zip(places, values, shown):
        axes.annotate(text, (max(value, 0), place), (4, 0), textcoords="offset points", va="center")


def save(figure: Figure, path: Path) -> None:
    """A PNG of 64 colors, a third as large, without date or version inside."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[:, :, :3])
    with atomic_file(path) as beside:
        image.quantize(64, dither=Image.Dither.NONE).save(beside, format="PNG", optimize=True)
