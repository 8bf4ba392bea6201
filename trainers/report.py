"""The report of a search or a training: one page of HTML that holds its pictures.

The templates hold the text of a page; the functions here give them numbers and pictures. Nothing
here trains.
"""

import base64
import importlib.metadata
import io
import math
import os
import pathlib
import platform
import re

import jinja2
import numpy as np

from trainers import curves, workdirs

# The table of outer steps: `{column of history.csv: (heading, format)}`.
_COLUMNS = {
    "horizon": ("horizon", ".0f"),
    "spent": ("plain trainings spent", ".2f"),
    "loss": ("loss", ".4f"),
    "accuracy": ("accuracy", ".2%"),
    "val_loss": ("validation loss", ".4f"),
    "val_loss_error": ("±\N{NO-BREAK SPACE}error", ".4f"),
    "val_accuracy": ("validation accuracy", ".2%"),
}


def search_page(title, lead, rows, origin, interpolations=None):
    """The report of a search.

    Args:
        title, lead: Plain text: the heading, and a sentence on the result below it.
        rows: Rows of the search's `history.csv`, one or more `{column: number}`: `outer_step`,
            `horizon`, losses and metrics; `learning_rate[0]`, … and
            `hypergradient/learning_rate[0]`, …; `accepted` and `best` (1 or 0);
            `val_loss_error`, the standard error of `val_loss`; `spent`, the cost so far;
            `below/learning_rate[0]`, `above/…`, one standard deviation.
        origin: What `describe_origin` returns.
        interpolations: `{name: "linear"}` of hyperparameters with knots. Defaults to none.

    Returns:
        A string, HTML that needs no other file.

    Example:

    >>> origin = describe_origin("python -m trainers.search …", seed=0)
    >>> search_page("Search", "", workdirs.read_history(workdir), origin)
    """
    search = _search(rows, interpolations or {})
    return _render("search.html", title=title, lead=lead, search=search, origin=origin)


def training_page(title, lead, summary, rows, schedules, search_rows, origin):
    """The report of a training with learned schedules.

    Args:
        title, lead, origin: As for `search_page`.
        summary: What `trainers.train.train` returns and `test.json` holds.
        rows: Rows of the training's `history.csv`, seed after seed.
        schedules: `{name: BucketedSchedule}`, stretched to the training.
        search_rows: Rows of the `history.csv` of the search that learned them; none when there is
            no such file.

    Returns:
        A string, HTML that needs no other file.
    """
    from keras_fds import callbacks

    interpolations = {name: schedule.interpolation for name, schedule in schedules.items()}
    return _render(
        "training.html",
        title=title,
        lead=lead,
        summary=summary,
        training_figure=curves.draw_training(rows, [each["seed"] for each in summary["seeds"]]),
        schedules=curves.spread(schedules),
        schedules_figure=callbacks.draw_schedules([schedules]),
        horizon=next(iter(schedules.values())).horizon,
        search=_search(search_rows, interpolations) if search_rows else None,
        origin=origin,
    )


def describe_origin(command, seed):
    """How to repeat a run: `{"command": …, "facts": {name: fact}}`."""
    facts = {"seed": seed, "Python": platform.python_version()}
    for package in ("keras-fds", "keras", "tensorflow", "numpy"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed as a package"
    return {"command": command, "facts": {**facts, "machine": machine()}}


def _search(rows, interpolations):
    """The contents of the sections on a search."""
    from keras_fds import BucketedSchedule, callbacks

    best = workdirs.best_row(rows)
    shown = best or rows[-1]

    def schedules(row, prefix=""):
        return {
            name: BucketedSchedule(
                [row[column] for column in buckets],
                int(row["horizon"]),
                interpolations.get(name, "constant"),
            )
            for name, buckets in curves.bucket_columns([row], prefix).items()
        }

    ends = [curves.bucket_columns([shown], f"{end}/") for end in ("below", "above")]
    bands = {
        name: tuple([shown[column] for column in of_end[name]] for of_end in ends)
        for name in ends[0]
    }
    longest = [row for row in rows if row["horizon"] == max(row["horizon"] for row in rows)]
    drawn = longest if shown in longest else [*longest, shown]
    return {
        "rows": rows,
        "best": best,
        "shown": shown,
        "schedules": schedules(shown),
        "schedules_figure": callbacks.draw_schedules(
            [schedules(row) for row in drawn],
            [int(row["outer_step"]) for row in drawn],
            int(shown["outer_step"]),
            bands,
        ),
        "has_bands": bool(bands),
        "validation_figure": curves.draw_validation(rows),
        "hypergradients_figure": curves.draw_hypergradients(rows),
        "columns": {
            column: shape
            for column, shape in _COLUMNS.items()
            if np.isfinite(curves.numbers(rows, column)).any()
        },
        "judged": any("accepted" in row for row in rows),
        "verdicts": [_verdict(row, best) for row in rows],
    }


def _verdict(row, best):
    """What the outer rule said about an outer step."""
    if row is best:
        return "best"
    if row.get("accepted") == 0:
        return "rejected"
    return "best until then" if row.get("best") == 1 else "accepted"


def machine():
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


def _svg(figure):
    """A figure as a data URL."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _number(value, spec):
    return f"{value:{spec}}" if value is not None and math.isfinite(value) else ""


def _render(template, **content):
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainers"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(svg=_svg, number=_number)
    return environment.get_template(template).render(content)
