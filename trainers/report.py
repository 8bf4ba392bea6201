"""The report of a search or a training: one page of HTML that holds its pictures.

Functions of what `history.csv` and `test.json` hold: nothing here trains.
"""

import base64
import html
import importlib.metadata
import io
import itertools
import math
import os
import pathlib
import platform
import re

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_BLUE, _RED, _GREEN = "#1f5fa8", "#c0392b", "#1e8449"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { max-width: 100%; display: block; margin: 1rem auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #999; }
tr.best td { background: #e8f5e9; font-weight: 600; } tr.rejected td { color: #a33; }
pre { background: #f4f4f4; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


def page(title, lead, sections):
    """A whole HTML page that needs no other file.

    Args:
        title, lead: Plain text: the heading, and a sentence on the result below it.
        sections: List of `(heading, HTML)`.

    Returns:
        A string.
    """
    body = "\n".join(f"<h2>{_text(heading)}</h2>\n{content}" for heading, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{_text(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n<h1>{_text(title)}</h1>\n<p>{_text(lead)}</p>\n{body}\n</body></html>\n"
    )


def search_sections(rows):
    """What a search's history tells.

    Args:
        rows: Rows of a search's `history.csv`, one or more `{column: number or string}`:
            `outer_step`, `horizon`, losses and metrics; `learning_rate[0]`, … and
            `hypergradient/learning_rate[0]`, …; `accepted` and `best` (1 or 0);
            `val_loss_error`, the standard error of `val_loss`.

    Returns:
        A list of `(heading, HTML)`.

    Example:

    >>> page("Search", "", search_sections(workdirs.read_history(workdir)))
    """
    from keras_fds import BucketedSchedule, callbacks

    rows = [_numbers(row) for row in rows]
    best = best_row(rows)
    shown = best or rows[-1]
    which = "the best one" if best else "the last one; none had a finite validation loss"
    schedules = [
        {name: BucketedSchedule(v, int(row["horizon"])) for name, v in _buckets(row).items()}
        for row in rows
    ]
    numbers = [int(row["outer_step"]) for row in rows]
    figure = callbacks.draw_schedules(schedules, numbers, int(shown["outer_step"]))
    return [
        (
            "Learned schedules",
            f"<p>Of outer step {shown['outer_step']:.0f}, {which}, over a horizon of "
            f"{shown['horizon']:.0f} inner steps:</p>{_bucket_table(_buckets(shown))}"
            f"{_image(figure, 'schedules')}",
        ),
        ("Validation", _image(draw_validation(rows), "validation loss over outer steps")),
        (
            "Hypergradients",
            "<p>Derivatives of the validation loss by every bucket's value (in its scale's "
            "coordinate). Where one is above zero, a smaller value would have been better.</p>"
            f"{_image(draw_hypergradients(rows), 'hypergradients over outer steps')}",
        ),
        ("Outer steps", _outer_steps_table(rows, best)),
    ]


def training_sections(summary, rows, schedules):
    """What a training with learned schedules gave.

    Args:
        summary: What `trainers.train.train` returns and `test.json` holds.
        rows: Rows of the training's `history.csv`, seed after seed.
        schedules: `{name: BucketedSchedule}`, stretched to the training.

    Returns:
        A list of `(heading, HTML)`.
    """
    from keras_fds import callbacks

    rows = [_numbers(row) for row in rows]
    interval = summary["accuracy_interval"]
    table = [
        [f"seed {each['seed']}", f"{each['accuracy']:.2%}", f"{each['loss']:.4f}"]
        for each in summary["seeds"]
    ]
    if interval:
        table.append(["mean", f"{summary['accuracy']:.2%}", f"{summary['loss']:.4f}"])
        table.append(["95% interval of the mean", "{:.2%} to {:.2%}".format(*interval), ""])
    seeds = [each["seed"] for each in summary["seeds"]]
    horizon = next(iter(schedules.values())).horizon
    return [
        ("Test", _table(["", "test accuracy", "test loss"], table)),
        ("Training", _image(draw_training(rows, seeds), "training loss over epochs")),
        (
            "Schedules",
            f"<p>Stretched to {horizon} training steps:</p>"
            f"{_bucket_table({name: each.values for name, each in schedules.items()})}"
            f"{_image(callbacks.draw_schedules([schedules]), 'schedules')}",
        ),
    ]


def origin_section(command, seed):
    """How to get the same again, a `(heading, HTML)`: command, seed, versions and machine."""
    facts = [["seed", str(seed)], ["Python", platform.python_version()]]
    for package in ("keras-fds", "keras", "tensorflow", "numpy"):
        try:
            facts.append([package, importlib.metadata.version(package)])
        except importlib.metadata.PackageNotFoundError:
            facts.append([package, "not installed as a package"])
    facts.append(["machine", _machine()])
    return ("Reproduce", f"<pre>{_text(command)}</pre>{_table(['', ''], facts)}")


def best_row(rows):
    """The row that the outer rule found best, or None."""
    return next((row for row in reversed(rows) if row.get("best") == 1), None)


# ----------------------------------------------------------------------------------- pictures
def draw_validation(rows):
    """Validation loss over outer steps, with its noise; rejected steps are marked.

    Args:
        rows: As for `search_sections`, all of them numbers.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    panel = figure.subplots()
    steps = [row["outer_step"] for row in rows]
    losses = [_finite(row.get("val_loss")) for row in rows]
    panel.plot(steps, losses, color=_BLUE, marker="o", markersize=4, label="validation loss")
    errors = [_finite(row.get("val_loss_error")) for row in rows]
    if any(map(math.isfinite, errors)):
        low, high = ([loss + s * e for loss, e in zip(losses, errors)] for s in (-1, 1))
        label = "± one standard error"
        panel.fill_between(steps, low, high, color=_BLUE, alpha=0.2, linewidth=0, label=label)
    rejected = [row for row in rows if _rejected(row)]
    panel.plot(
        [row["outer_step"] for row in rejected],
        [_finite(row.get("val_loss")) for row in rejected],
        *("x",),
        color=_RED,
        markersize=9,
        markeredgewidth=2,
        label="rejected" if rejected else None,
    )
    broken = [step for step, loss in zip(steps, losses) if math.isnan(loss)]
    if broken:
        top = {"transform": panel.get_xaxis_transform(), "clip_on": False}
        panel.plot(broken, [1.0] * len(broken), "v", color=_RED, label="not finite", **top)
    best = best_row(rows)
    if best:
        panel.plot(
            *(best["outer_step"], best["val_loss"], "*"),
            color=_GREEN,
            markersize=14,
            label=f"best: {best['val_loss']:.4g}",
        )
    positive = [loss for loss in losses if math.isfinite(loss)]
    if positive and min(positive) > 0 and max(positive) > 10 * min(positive):
        panel.set_yscale("log")
    _finish(panel, "outer step", "validation loss")
    panel.legend(frameon=False)
    return figure


def draw_hypergradients(rows):
    """Hypergradients of every bucket over outer steps, one panel a hyperparameter.

    Args:
        rows: As for `search_sections`, all of them numbers.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    buckets = [_buckets(row, "hypergradient/") for row in rows]
    names = list(buckets[0])
    columns = max(1, min(3, len(names)))
    lines = max(1, -(-len(names) // columns))
    figure = Figure(figsize=(1.6 + 3.6 * columns, 3.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    most = max((len(each) for each in buckets[0].values()), default=0)
    steps = [row["outer_step"] for row in rows]
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    for name, panel in zip(names, panels):
        values = [each[name] for each in buckets]
        for k in range(len(values[0])):
            curve = [_finite(each[k]) for each in values]
            panel.plot(steps, curve, color=_color(k, most), marker="o", markersize=3, label=f"{k}")
        sizes = sorted(abs(v) for each in values for v in each if v and math.isfinite(v))
        if sizes and sizes[-1] > 30 * sizes[len(sizes) // 2]:
            threshold = max(sizes[len(sizes) // 2], sizes[-1] / 1e3)
            panel.set_yscale("symlog", linthresh=10 ** math.ceil(math.log10(threshold)))
        else:
            panel.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_title(name, fontsize=11)
        _finish(panel, "outer step", "hypergradient")
    if most > 1:
        fullest = max(range(len(names)), key=lambda i: len(buckets[0][names[i]]))
        handles, labels = panels[fullest].get_legend_handles_labels()
        shown = sorted({round(i * (most - 1) / 9) for i in range(10)}) if most > 10 else range(most)
        chosen = [handles[i] for i in shown], [labels[i] for i in shown]
        figure.legend(*chosen, title="bucket", loc="outside right upper", frameon=False)
    return figure


def draw_training(rows, seeds):
    """Training loss over epochs, a line a seed.

    Args:
        rows: As for `training_sections`, all of them numbers.
        seeds: The seed of every stretch of rows that begins at epoch 0.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panel = figure.subplots()
    starts = [i for i, row in enumerate(rows) if row["epoch"] == 0] + [len(rows)]
    for k, (seed, (start, end)) in enumerate(zip(seeds, itertools.pairwise(starts))):
        panel.plot(
            [row["epoch"] + 1 for row in rows[start:end]],
            [_finite(row.get("loss")) for row in rows[start:end]],
            color=_color(k, len(seeds)),
            marker="o",
            markersize=3,
            label=f"seed {seed}",
        )
    panel.set_yscale("log")
    _finish(panel, "epoch", "training loss")
    panel.legend(frameon=False)
    return figure


def _finish(panel, xlabel, ylabel):
    panel.set_xlabel(xlabel)
    panel.set_ylabel(ylabel)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _color(number, count):
    return colormaps["viridis"](0.9 * number / max(count - 1, 1))


# --------------------------------------------------------------------------------- the history
def _numbers(row):
    """A row's numbers: where a CSV file has nothing, Keras writes NA."""
    return {column: float(value) for column, value in row.items() if value not in ("", "NA", None)}


def _finite(value):
    return value if value is not None and math.isfinite(value) else math.nan


def _rejected(row):
    return row.get("accepted") == 0


def _buckets(row, prefix=""):
    """`{name: [value of every bucket]}` of the columns `prefix + name[k]`."""
    buckets = {}
    for column, value in row.items():
        match = re.fullmatch(r"(.+/|)([^/]+)\[\d+\]", column)
        if match and match[1] == prefix:
            buckets.setdefault(match[2], []).append(value)
    return buckets


# ---------------------------------------------------------------------------------------- HTML
def _text(value):
    return html.escape(str(value))


def _image(figure, description):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_text(description)}" src="data:image/svg+xml;base64,{encoded}">'


def _table(header, rows, classes=()):
    """HTML of a table; `classes` gives every row's CSS class."""
    lines = [
        "<thead><tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr></thead>"
    ]
    for number, row in enumerate(rows):
        kind = f' class="{classes[number]}"' if classes and classes[number] else ""
        cells = "".join(f"<td>{_text(cell)}</td>" for cell in row)
        lines.append(f"<tr{kind}>{cells}</tr>")
    head = lines[:1] if any(header) else []
    return '<div class="wide"><table>' + "\n".join(head + lines[1:]) + "</table></div>"


def _bucket_table(buckets):
    columns = max(map(len, buckets.values()), default=0)
    rows = [
        [name, *(f"{value:.4g}" for value in values), *[""] * (columns - len(values))]
        for name, values in buckets.items()
    ]
    return _table(["bucket", *range(columns)], rows)


def _outer_steps_table(rows, best):
    columns = {"horizon": ".0f", "loss": ".4f", "accuracy": ".2%"}
    columns |= {"val_loss": ".4f", "val_loss_error": ".4f", "val_accuracy": ".2%"}
    present = [c for c in columns if any(math.isfinite(_finite(row.get(c))) for row in rows)]
    judged = any("accepted" in row for row in rows)
    lines, classes = [], []
    for row in rows:
        numbers = {c: _finite(row.get(c)) for c in present}
        cells = [f"{n:{columns[c]}}" if math.isfinite(n) else "" for c, n in numbers.items()]
        verdict = [_verdict(row, best)]
        lines.append([f"{row['outer_step']:.0f}", *cells, *(verdict if judged else ())])
        classes.append("best" if row is best else "rejected" if _rejected(row) else "")
    names = [c.replace("val_", "validation ").replace("_", " ") for c in present]
    names = ["± error" if name == "validation loss error" else name for name in names]
    return _table(["outer step", *names, *(["outer rule"] if judged else ())], lines, classes)


def _verdict(row, best):
    if "accepted" not in row or _rejected(row):
        return "rejected" if "accepted" in row else ""
    if row is best:
        return "best"
    return "best until then" if row.get("best") == 1 else "accepted"


def _machine():
    """The processor, its cores and TensorFlow's accelerators in a line."""
    import tensorflow as tf

    processor = platform.processor() or platform.machine()
    info = pathlib.Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    cores = f"{models[0] if models else processor}, {os.cpu_count()} cores"
    return f"{cores}; {', '.join(gpus) or 'no GPU'}; {platform.system()} {platform.release()}"
