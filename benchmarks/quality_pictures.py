"""A picture of the schedules that searches of many seeds learned, and the tuned cosine decay.

    python -m benchmarks.quality_pictures --picture=docs/images/quality.png

Draws the results of `benchmarks.quality`: a row of panels for every data set with a comparison.
"""

import numpy as np
from absl import app, flags
from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks import quality

_PICTURE = flags.DEFINE_string("picture", "docs/images/quality.png", "File to write.")


def draw(comparisons):
    """A figure of `{dataset: (learned, tuned)}`, as `quality.results_of` returns both."""
    figure = Figure(figsize=(15, 3 * len(comparisons)), layout="constrained")
    rows = figure.subplots(len(comparisons), 5, squeeze=False)
    for (dataset, (learned, tuned)), row in zip(comparisons.items(), rows):
        decay = next(iter(tuned.values()))
        draw_losses(row[0], learned)
        for panel, (name, baseline) in zip(row[1:], baselines(decay).items()):
            draw_schedules(panel, name, [each["schedules"][name] for each in learned.values()])
            time = np.linspace(0, 1, 200)
            panel.plot(time, baseline(time), "k--", linewidth=1.2, label="tuned cosine")
            panel.set_ylim(bottom=0)
        draw_differences(row[4], learned, tuned)
        row[0].set_title(dataset, loc="left")
        row[1].legend(frameon=False)
    for panel in rows.flatten():
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def baselines(decay):
    """`{hyperparameter: function of the part of the horizon}` of a cosine decay."""
    return {
        "learning_rate": lambda time: decay["learning_rate"] / 2 * (1 + np.cos(np.pi * time)),
        "momentum": lambda time: np.full_like(time, quality.MOMENTUM),
        "weight_decay": lambda time: np.full_like(time, decay["weight_decay"]),
    }


def draw_losses(panel, learned):
    for seed, each in learned.items():
        outer_steps = 1 + np.arange(len(each["val_loss"]))
        panel.plot(outer_steps, each["val_loss"], "o-", markersize=3, color=color(seed))
    panel.set(xlabel="outer step", ylabel="validation loss", yscale="log")
    panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def draw_schedules(panel, name, schedules):
    for seed, values in enumerate(schedules):
        edges = np.linspace(0, 1, len(values) + 1)
        panel.stairs(values, edges, baseline=None, color=color(seed), alpha=0.8)
    panel.set(xlabel="inner step / horizon", ylabel=name)


def draw_differences(panel, learned, tuned):
    seeds, differences = quality.differences(learned, tuned)
    for seed, difference in zip(seeds, differences):
        panel.plot(int(seed), difference, "o", color=color(seed))
    mean, half = quality.mean_and_half(differences)
    panel.axhspan(mean - half, mean + half, alpha=0.15, color="tab:blue")
    panel.axhline(mean, color="tab:blue")
    panel.axhline(0, color="black", linestyle="--", linewidth=1.2)
    panel.set(xlabel="seed", ylabel="points of test accuracy won")
    panel.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def color(seed):
    return f"C{int(seed) % 10}"


def main(_):
    results = {
        dataset: tuple(quality.results_of(dataset, part) for part in ("search", "cosine"))
        for dataset in quality.CONFIGS
    }
    draw({key: each for key, each in results.items() if all(each)}).savefig(_PICTURE.value, dpi=80)


if __name__ == "__main__":
    app.run(main)
