"""What the records of a comparison show: a table, a CSV file, curves, TensorBoard's HParams.

A record is what `trainers.compare` writes of one method with one seed:

- `method`, `seed`;
- `accuracies`, `losses`: of the test, one for each training with what was learned;
- `validation_accuracy`, `plain_trainings`, `search_seconds` of learning, `train_seconds`;
- `measured`: `[[seconds, plain trainings, validation accuracy], …]` of what went over the whole
  horizon; plain trainings may be `None`;
- `schedules`: what was learned.
"""

import csv

from trainers import workdirs

# The columns of the CSV file.
_COLUMNS = (
    "task",
    "method",
    "seed",
    "test_accuracy",
    "test_loss",
    "validation_accuracy",
    "plain_trainings",
    "search_seconds",
    "train_seconds",
)

_SHOWN = 20.0  # Points of accuracy below the best that pictures show.


def by_method(records):
    """`{method: {seed: record}}`."""
    found = {}
    for each in records:
        found.setdefault(each["method"], {})[each["seed"]] = each
    return found


def accuracies(of_seeds):
    """`{seed: mean test accuracy in percent}` of `{seed: record}`."""
    return {seed: 100 * _mean(each["accuracies"]) for seed, each in of_seeds.items()}


def table(records):
    """The results as a table in Markdown: means and 95% intervals over seeds, paired tests.

    Differences are to the cosine decay, or, where there is none, to the first method; seed by seed.
    p is that of a two-sided paired t-test.

    Args:
        records: See above.
    """
    found = by_method(records)
    baseline = "cosine" if "cosine" in found else next(iter(found), "")
    lines = [
        f"| method | test accuracy | above {baseline} | p | seeds | plain trainings | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    theirs = accuracies(found.get(baseline, {}))
    for method, of_seeds in found.items():
        own = accuracies(of_seeds)
        differences = [own[seed] - theirs[seed] for seed in own if seed in theirs]
        apart = p = ""
        if method != baseline:
            apart, p = _cell(differences, "+"), _p_value(differences)
        spent = [each["plain_trainings"] for each in of_seeds.values() if each["plain_trainings"]]
        lines.append(
            f"| {method} | {_cell(list(own.values()))} | {apart} | {p} | {len(own)} | "
            f"{f'{_mean(spent):.1f}' if spent else ''} | "
            f"{_mean([each['search_seconds'] for each in of_seeds.values()]):.0f} |"
        )
    return "\n".join(lines)


def _mean(values):
    return sum(values) / len(values)


def _cell(values, sign=""):
    import numpy as np
    from scipy import stats

    if not values:
        return ""
    text = f"{np.mean(values):{sign}.2f}"
    if len(values) < 2:
        return text
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{text} ± {half:.2f}"


def _p_value(differences):
    """Of a two-sided paired t-test, as text; none with one seed or without any difference."""
    import numpy as np
    from scipy import stats

    if len(differences) < 2 or np.ptp(differences) == 0:
        return ""
    return f"{stats.ttest_1samp(differences, 0.0).pvalue:.3f}"


def write_csv(path, records_of):
    """Writes a row for every record.

    Args:
        path: Of the file, a `pathlib.Path`.
        records_of: `{task: records}`.
    """
    from keras_fds import files

    with files.replacement(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        for task, records in records_of.items():
            for each in records:
                found = {
                    **each,
                    "task": task,
                    "test_accuracy": _mean(each["accuracies"]),
                    "test_loss": _mean(each["losses"]),
                }
                writer.writerow({name: found.get(name) for name in _COLUMNS})


def write_hparams(folder, records_of):
    """Writes the HParams table of TensorBoard, a run for every record; it replaces older ones.

    Args:
        folder: For the event files, a `pathlib.Path`.
        records_of: `{task: records}`.
    """
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    for path in folder.rglob("events.out.tfevents.*"):
        path.unlink()
    metrics = {
        "test_accuracy": "test accuracy",
        "validation_accuracy": "validation accuracy",
        "plain_trainings": "plain trainings",
        "search_seconds": "seconds",
    }
    with tf.summary.create_file_writer(str(folder)).as_default():
        api.hparams_config(
            hparams=[api.HParam(name) for name in ("task", "method", "seed")],
            metrics=[api.Metric(tag, display_name=name) for tag, name in metrics.items()],
        )
    for task, records in records_of.items():
        for each in records:
            run = folder / task / each["method"] / str(each["seed"])
            found = {**each, "test_accuracy": _mean(each["accuracies"])}
            with tf.summary.create_file_writer(str(run)).as_default():
                api.hparams({"task": task, "method": each["method"], "seed": each["seed"]})
                for tag in metrics:
                    if found[tag] is not None:
                        tf.summary.scalar(tag, found[tag], step=0)


def draw_course(records, against="seconds"):
    """The paper's Figure 1: accuracy and regret against time, a line for every method.

    The first two panels have the validation accuracy of the best so far, and by how much it is
    below the best of all methods and seeds, medians over seeds. The last one has the test accuracy
    of what was learned, means and 95% intervals over seeds, where the search ended. A method that
    does not know its plain trainings is left out where they are asked for.

    Args:
        records: See above.
        against: `"seconds"` or `"plain trainings"`. Defaults to `"seconds"`.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    import numpy as np
    from matplotlib import ticker
    from matplotlib.figure import Figure
    from scipy import stats

    figure = Figure(figsize=(13.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    found = by_method(records)
    courses = {method: _courses(of_seeds, against) for method, of_seeds in found.items()}
    reached = [course[:, 1].max() for of_one in courses.values() for course in of_one.values()]
    best = 100 * max(reached, default=0.0)
    tests = {method: list(accuracies(of_seeds).values()) for method, of_seeds in found.items()}
    lowest = max(map(np.mean, tests.values()), default=0.0) - _SHOWN
    for number, (method, of_seeds) in enumerate(courses.items()):
        if not of_seeds:
            continue
        color, cycle = f"C{number % 10}", number // 10 % 2
        style = {"color": color, "ls": ("-", "--")[cycle], "where": "post"}
        costs = np.unique(np.concatenate([course[:, 0] for course in of_seeds.values()]))
        costs = costs[costs >= max(course[0, 0] for course in of_seeds.values())]
        so_far = [
            np.maximum.accumulate(course[:, 1])[np.searchsorted(course[:, 0], costs, "right") - 1]
            for course in of_seeds.values()
        ]
        middle = 100 * np.median(so_far, axis=0)
        marker = "" if len(costs) > 1 else ("o", "s")[cycle]
        panels[0].step(
            costs, np.maximum(middle, best - _SHOWN), label=method, marker=marker, **style
        )
        panels[1].step(costs, best - middle, marker=marker, **style)
        own, end = tests[method], np.median([course[-1, 0] for course in of_seeds.values()])
        half = stats.sem(own) * stats.t.ppf(0.975, len(own) - 1) if len(own) > 1 else 0.0
        shape = ("o", "s")[cycle] if np.mean(own) >= lowest else "v"
        height = max(np.mean(own), lowest)
        panels[2].errorbar(end, height, half, fmt=shape, color=color, capsize=3)
    panels[0].set_ylim(bottom=best - _SHOWN)
    panels[1].set_yscale("symlog", linthresh=1.0)
    panels[1].set_ylim(bottom=0.0)
    panels[2].set_ylim(lowest - 0.5, min(100.5, panels[2].get_ylim()[1]))
    titles = (
        "validation accuracy, percent (at the edge: lower)",
        "regret, points",
        "test accuracy, percent (▾: lower)",
    )
    for panel, title in zip(panels, titles):
        panel.set(xscale="log", xlabel=against, title=title)
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    if reached:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _courses(of_seeds, against):
    """`{seed: float64 [measurements, 2]}`: cost and validation accuracy."""
    import numpy as np

    column = 0 if against == "seconds" else 1
    found = {}
    for seed, each in of_seeds.items():
        rows = [row for row in each.get("measured", ()) if row[column] is not None]
        if rows:
            found[seed] = np.array([(row[column], row[2]) for row in rows], "float64")
    return found


def write(folder, records_of):
    """Writes all of it into a folder: results.md, results.csv, pictures, tensorboard/.

    Args:
        folder: A `pathlib.Path`.
        records_of: `{task: records}`; the pictures of several tasks are in the tasks' own folders.
    """
    from keras_fds import files

    tables = [f"## {task}\n\n{table(records)}\n" for task, records in records_of.items()]
    if len(records_of) == 1:
        ((_, records),) = records_of.items()
        tables = [f"{table(records)}\n"]
        for name, against in (("seconds", "seconds"), ("cost", "plain trainings")):
            with files.replacement(folder / f"figure_{name}.png") as path:
                draw_course(records, against).savefig(path, format="png", dpi=110)
    workdirs.write_text(folder / "results.md", "\n".join(tables))
    write_csv(folder / "results.csv", records_of)
    write_hparams(folder / "tensorboard", records_of)
