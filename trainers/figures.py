"""Draws a figure of the paper from the results of its experiment, published values beside them.

    python -m trainers.figures --figure=3 --results=runs/figure_3_mnist
    python -m trainers.figures --figure=2 --results=runs/figure_2 --picture=figure_2.png

Figures 1, 3 and 4 are drawn from the folder of `trainers.compare`, Figure 2 from that of
`trainers.fluctuation`; --figure=seconds and --figure=cost draw what any comparison reaches in which
time, and at which cost in plain trainings. The picture is written to --picture, by default
figure_N.png in the folder.
"""

import json
import pathlib

from absl import flags

from trainers import experiment, fluctuation, records

REQUIRED = ("figure", "results")
_FIGURE = flags.DEFINE_enum(
    "figure", None, ["1", "2", "3", "4", "seconds", "cost"], "Which figure."
)
_RESULTS = flags.DEFINE_string("results", None, "The folder of its experiment.")
_PICTURE = flags.DEFINE_string("picture", None, "The PNG file to write; None: in --results.")

# What Micaelli & Storkey (2021) published, by figure and dataset; accuracies in percent.
PUBLISHED = {
    ("3", "mnist"): {"accuracies": {"shared": 97, "unshared": 97, "cosine": 97, "greedy": 92}},
    ("3", "svhn_cropped"): {
        "accuracies": {"shared": 84, "unshared": 10, "cosine": 79, "greedy": 22}
    },
    ("4", "cifar10"): {
        "accuracies": {"paper": 89.1, "greedy": 78},
        "schedules": {
            "learning_rate": [0.15, 0.49, 0.28, 0.11, 0.0],
            "momentum": [0.277],
            "weight_decay": [6.5e-4],
        },
    },
}

_MOST_BUCKETS = 100  # Of a schedule that is drawn in front of others.


def draw(figure, results):
    """A figure of the paper.

    Args:
        figure: Its number, `"1"` to `"4"`, or `"seconds"`, `"cost"`.
        results: The folder of its experiment, a `pathlib.Path`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: The folder holds no such results.
    """
    if figure == "2":
        return fluctuation.draw_results(results)
    path = results / "results.json"
    if not path.exists():
        raise ValueError(
            "--results must be the folder of a comparison (`python -m trainers.compare`). "
            f"Received: results={str(results)!r}, which has no results.json"
        )
    content = json.loads(path.read_text())
    if figure in ("seconds", "cost"):
        against = "seconds" if figure == "seconds" else "plain trainings"
        return records.draw_course(content["records"], against)
    published = PUBLISHED.get((figure, content["config"]["dataset"]), {})
    return draw_comparison(content["records"], published)


def draw_comparison(of_runs, published):
    """What the methods learned, a panel for every hyperparameter, and the accuracies.

    Args:
        of_runs: The records of `trainers.compare.compare`.
        published: `{"accuracies": {method: percent}, "schedules": {name: values}}`, or less.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    by_method = records.by_method(of_runs)
    schedules = {
        method: [_schedules(each) for each in of_seeds.values()]
        for method, of_seeds in by_method.items()
    }
    names = list(dict.fromkeys(n for all_ in schedules.values() for one in all_ for n in one))
    figure = Figure(figsize=(4.4 * (len(names) + 1), 3.8), layout="constrained")
    *panels, last = figure.subplots(1, len(names) + 1, squeeze=False)[0]
    colors = {method: f"C{k}" for k, method in enumerate(by_method)}
    for name, panel in zip(names, panels):
        for method, of_seeds in schedules.items():
            for k, one in enumerate(of_seeds):
                if name in one:
                    label = None if k else method
                    jagged = one[name].num_buckets > _MOST_BUCKETS  # It goes behind the others.
                    style = {"alpha": 0.15, "zorder": 1} if jagged else {"zorder": 2}
                    panel.plot(
                        *_course(one[name]), color=colors[method], lw=1, label=label, **style
                    )
        values = published.get("schedules", {}).get(name)
        if values:
            times = [k / len(values) for k in range(len(values) + 1)]
            panel.step(times, [*values, values[-1]], "k--", where="post", label="published")
        panel.set(title=name, xlabel="part of the horizon")
    for k, (method, of_seeds) in enumerate(by_method.items()):
        own = list(records.accuracies(of_seeds).values())
        last.plot([k] * len(own), own, "o", color=colors[method], alpha=0.7)
        if method in published.get("accuracies", {}):
            last.plot(k, published["accuracies"][method], "k_", markersize=18)
    last.set_xticks(range(len(by_method)), by_method, rotation=20)
    last.set(title="test accuracy, percent (a line: published)")
    for panel in (*panels, last):
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    lines = panels[0].get_legend_handles_labels()
    legend = figure.legend(*lines, loc="outside lower left", ncols=6, frameon=False, fontsize=8)
    for line in legend.get_lines():
        line.set_alpha(1.0)
    return figure


def _schedules(record):
    """`{name: keras_fds.BucketedSchedule}` of a record."""
    from keras_fds import BucketedSchedule

    return {
        name: BucketedSchedule.from_config(each)
        for name, each in record["schedules"]["schedules"].items()
    }


def _course(schedule):
    """Parts of the horizon and the values there."""
    import numpy as np

    values = np.asarray(schedule.stretched(1000).per_step())
    return np.linspace(0, 1, len(values)), values


def main():
    """The program."""
    from keras_fds import files

    results = pathlib.Path(_RESULTS.value)
    picture = pathlib.Path(_PICTURE.value or results / f"figure_{_FIGURE.value}.png")
    figure = draw(_FIGURE.value, results)
    with files.replacement(picture) as path:
        figure.savefig(path, dpi=110)
    print(f"Picture: {picture}")
    return 0


if __name__ == "__main__":
    experiment.run(main, required=REQUIRED)
