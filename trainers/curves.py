"""Curves over outer steps and epochs, as `matplotlib.figure.Figure`s for the reports.

`rows` are those of `history.csv`, `[{column: number}, …]`; see `trainers.report`.
"""

import itertools
import math
import re

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainers import workdirs

_BLUE = "#1f5fa8"
_RED = "#c0392b"
_GREEN = "#1e8449"


def draw_validation(rows):
    """Validation loss over outer steps, with its noise; rejected steps are marked."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panel = figure.subplots()
    steps, losses = numbers(rows, "outer_step"), numbers(rows, "val_loss")
    panel.plot(steps, losses, color=_BLUE, marker="o", markersize=4, label="validation loss")
    errors = numbers(rows, "val_loss_error")
    if np.isfinite(errors).any():
        panel.fill_between(
            steps,
            losses - errors,
            losses + errors,
            color=_BLUE,
            alpha=0.2,
            linewidth=0,
            label="± one standard error",
        )
    rejected = numbers(rows, "accepted") == 0
    if rejected.any():
        panel.plot(
            steps[rejected],
            losses[rejected],
            "x",
            color=_RED,
            markersize=9,
            markeredgewidth=2,
            label="rejected",
        )
    broken = steps[np.isnan(losses)]
    if broken.size:
        panel.plot(
            broken,
            np.ones_like(broken),
            "v",
            color=_RED,
            label="not finite",
            transform=panel.get_xaxis_transform(),  # At the upper edge.
            clip_on=False,
        )
    best = workdirs.best_row(rows)
    if best:
        label = f"best: {best['val_loss']:.4g}"
        panel.plot(
            best["outer_step"], best["val_loss"], "*", color=_GREEN, markersize=14, label=label
        )
    finite = losses[np.isfinite(losses)]
    if finite.size and 0 < 10 * finite.min() < finite.max():
        panel.set_yscale("log")
    _finish(panel, "outer step", "validation loss")
    panel.legend(frameon=False)
    return figure


def draw_hypergradients(rows):
    """Hypergradients of every bucket over outer steps, one panel per hyperparameter.

    `None` where no outer step has any.
    """
    columns = bucket_columns(rows, "hypergradient/")
    if not columns:
        return None
    across = min(3, len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(figsize=(1.6 + 3.6 * across, 3 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    most = max(map(len, columns.values()))
    colors = _colors(most)
    steps = numbers(rows, "outer_step")
    for panel in panels.flat[len(columns) :]:
        panel.set_axis_off()
    for panel, (name, buckets) in zip(panels.flat, columns.items()):
        values = np.stack([numbers(rows, column) for column in buckets])
        for k, curve in enumerate(values):
            panel.plot(steps, curve, color=colors(k), marker="o", markersize=3, label=str(k))
        sizes = np.abs(values[np.isfinite(values) & (values != 0)])
        if sizes.size and sizes.max() > 30 * np.median(sizes):
            threshold = max(np.median(sizes), sizes.max() / 1e3)
            panel.set_yscale("symlog", linthresh=10 ** math.ceil(math.log10(threshold)))
        else:
            panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_title(name, fontsize=11)
        _finish(panel, "outer step", "hypergradient")
    if most > 1:
        scale = ScalarMappable(BoundaryNorm(np.arange(most + 1) - 0.5, most), colors)
        ticks = MaxNLocator(10, integer=True)
        bar = figure.colorbar(scale, ax=panels, ticks=ticks, label="bucket", aspect=40)
        bar.minorticks_off()
    return figure


def draw_training(rows, seeds):
    """Training loss over epochs, one line per seed; each seed's rows begin at epoch 0."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panel = figure.subplots()
    colors = _colors(len(seeds))
    starts = [i for i, row in enumerate(rows) if row["epoch"] == 0] + [len(rows)]
    for k, (seed, (start, end)) in enumerate(zip(seeds, itertools.pairwise(starts))):
        epochs, losses = numbers(rows[start:end], "epoch") + 1, numbers(rows[start:end], "loss")
        panel.plot(epochs, losses, color=colors(k), marker="o", markersize=3, label=f"seed {seed}")
    panel.set_yscale("log")
    _finish(panel, "epoch", "training loss")
    panel.legend(frameon=False)
    return figure


def _colors(count):
    """A colour map of so many colours, none too pale for a line."""
    return ListedColormap(colormaps["viridis"](np.linspace(0, 0.9, count)))


def _finish(panel, xlabel, ylabel):
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def spread(schedules):
    """Schedules of single numbers: of a vector its least, its median and its greatest element.

    Args:
        schedules: `{name: keras_fds.BucketedSchedule}`.
    """
    found = {}
    for name, schedule in schedules.items():
        if schedule.values.ndim == 1:
            found[name] = schedule
            continue
        elements = schedule.values.reshape(schedule.num_buckets, -1)
        for kind, of_kind in (("least", np.min), ("median", np.median), ("greatest", np.max)):
            values = of_kind(elements, axis=1)
            found[f"{name}, {kind}"] = type(schedule)(
                values, schedule.horizon, schedule.interpolation
            )
    return found


def numbers(rows, column):
    """A column's numbers as an array; NaN where a number is missing or infinite."""
    values = np.array([row.get(column, math.nan) for row in rows])
    return np.where(np.isfinite(values), values, math.nan)


def bucket_columns(rows, prefix=""):
    """`{name: its columns, bucket after bucket}` of the columns `prefix + name[k]`.

    Elements or quantiles of a vector, `name[k]_50%`, have a name each, `name_50%`.
    """
    columns = {}
    for column in dict.fromkeys(itertools.chain(*rows)):
        match = re.fullmatch(r"(.+/|)([^/]+)\[\d+\](_[^/]+)?", column)
        if match and match[1] == prefix:
            columns.setdefault(match[2] + (match[3] or ""), []).append(column)
    return columns
