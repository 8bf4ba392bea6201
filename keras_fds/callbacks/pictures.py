"""The picture of schedules that callbacks and programs share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from keras_fds.schedules import BucketedSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_ELEMENTS = 10  # Of a vector, that are drawn one by one.


def draw_schedules(
    schedules: Iterable[Mapping[str, BucketedSchedule]],
    outer_steps: Iterable[int] | None = None,
    best: int | None = None,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    quantiles: Mapping[str, Any] | None = None,
) -> Figure:
    """Draws schedules, one panel per hyperparameter: old ones pale, the best one dark.

    Of a vector it draws the values, means over the horizon: element by element, or, of more than
    ten, from the smallest to the largest.

    Args:
        schedules: List of `{name: BucketedSchedule}`, oldest first, all with the same names.
            Where their horizons differ they are drawn over the fraction of the horizon.
        outer_steps: Their numbers for the legend. Defaults to `1, 2, …`.
        best: The number of the one to draw dark. Defaults to the last one.
        bands: `{name: (below, above)}`, as `HyperOptimizer.bands` is: values between which the dark
            one has a shade. Defaults to `None`.
        quantiles: `{name: percents}` of vectors whose schedules hold quantiles in place of their
            elements. Defaults to `None`.

    Returns:
        A `matplotlib.figure.Figure`; it belongs to no window and needs no closing.

    Raises:
        ValueError: When there is nothing to draw, or the names differ.

    Example:

    >>> draw_schedules([keras_fds.load_schedules("run/schedules.json")]).savefig("schedules.png")
    """
    from matplotlib.figure import Figure

    schedules = list(schedules)
    names = list(schedules[0]) if schedules else []
    if not names or any(set(names) != set(each) for each in schedules):
        raise ValueError(
            "`schedules` must be a list of dictionaries with the same hyperparameters. "
            f"Received: schedules={schedules}"
        )
    outer_steps = list(range(1, len(schedules) + 1) if outer_steps is None else outer_steps)
    best = best if best in outer_steps else None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(1.2 + 3.6 * columns, 2.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, panel in zip(names, panels):
        of_name = [each[name] for each in schedules]
        if of_name[0].values.ndim > 1:
            _draw_vector(panel, name, of_name, outer_steps, best, (quantiles or {}).get(name))
        else:
            _draw_panel(panel, name, of_name, outer_steps, best, (bands or {}).get(name))
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    if len(schedules) > 1:
        lines, labels = panels[0].get_legend_handles_labels()
        spread = {round(i) for i in np.linspace(0, len(lines) - 1, 6)}
        shown = sorted(spread | ({outer_steps.index(best)} if best else set()))
        figure.legend(
            [lines[i] for i in shown],
            [labels[i] for i in shown],
            title="outer step",
            loc="outside right upper",
            frameon=False,
        )
    return figure


def _draw_panel(panel, name, schedules, outer_steps, best, band):
    from matplotlib import colormaps

    fraction = len({schedule.horizon for schedule in schedules}) > 1
    dark = outer_steps.index(best) if best else len(schedules) - 1
    styles = _styles(outer_steps, best)
    for schedule, style in zip(schedules, styles):
        unit = schedule.horizon if fraction else 1
        if schedule.interpolation == "linear" and schedule.num_buckets > 1:
            knots = np.linspace(0, schedule.horizon / unit, schedule.num_buckets)
            panel.plot(knots, schedule.values, **style)
        else:
            panel.stairs(schedule.values, edges(schedule) / unit, baseline=None, **style)
    highest = max(schedule.values.max() for schedule in schedules)
    if band:
        best = schedules[dark]
        unit = best.horizon if fraction else 1
        highest = max(highest, min(np.max(band[1]), 2 * highest))
        shade = {"color": colormaps["Blues"](0.5), "alpha": 0.25, "linewidth": 0, "zorder": 1}
        low, high = map(np.asarray, band)
        if best.interpolation == "linear" and len(low) > 1:
            knots = np.linspace(0, best.horizon / unit, len(low))
            panel.fill_between(knots, low, high, **shade)
        else:
            panel.stairs(high, edges(best) / unit, baseline=low, fill=True, **shade)
    panel.set_xlabel("inner step / horizon" if fraction else "inner step")
    _finish(panel, name, highest, all(np.all(schedule.values >= 0) for schedule in schedules))


def _draw_vector(panel, name, schedules, outer_steps, best, quantiles):
    """A vector's values, means over the buckets: by element, or sorted."""
    elements = [np.reshape(each.values, (each.num_buckets, -1)).mean(axis=0) for each in schedules]
    if quantiles is None and elements[0].size > _MOST_ELEMENTS:
        quantiles = np.arange(101)
        elements = [np.percentile(values, quantiles) for values in elements]
    for values, style in zip(elements, _styles(outer_steps, best)):
        if quantiles is None:
            panel.stairs(values, np.arange(len(values) + 1) - 0.5, baseline=None, **style)
        else:
            panel.plot(np.asarray(quantiles) / 100, values, **style)
    panel.set_xlabel("element" if quantiles is None else "part of the elements, smallest first")
    highest = max(values.max() for values in elements)
    _finish(panel, name, highest, all(np.all(values >= 0) for values in elements))


def _styles(outer_steps, best):
    """How the line of each outer step looks."""
    from matplotlib import colormaps

    last = len(outer_steps) - 1
    dark = outer_steps.index(best) if best else last
    return [
        {
            "color": colormaps["Blues"](1.0 if i == dark else 0.2 + 0.5 * i / max(last, 1)),
            "linewidth": 2.2 if i == dark else 1.1,
            "zorder": 3 if i == dark else 2,
            "label": f"{outer_step}{', the best' if outer_step == best else ''}",
        }
        for i, outer_step in enumerate(outer_steps)
    ]


def _finish(panel, name, highest, starts_at_zero):
    panel.set_ylabel(name)
    panel.margins(x=0)
    if starts_at_zero:
        top = highest if highest > 0 else 1
        panel.set_ylim(-0.02 * top, 1.06 * top)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
    panel.set_axisbelow(True)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def edges(schedule):
    """The first inner steps of every bucket or line, then the horizon; int64."""
    pieces = schedule.num_buckets
    if schedule.interpolation == "linear":
        pieces = max(1, pieces - 1)
    return -(-np.arange(pieces + 1, dtype="int64") * schedule.horizon // pieces)


def pixels(figure):
    """A figure as uint8 `[height, width, 3]`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
