"""A table and a picture of the results: test accuracy against cost, with 95% intervals."""

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.outer_rules.run import COSTS, SEARCHERS, TEST_TRAININGS, read

# The others are compared with it, seed by seed.
BASELINE, BASELINE_OF_ABLATIONS = "tpe_3", "rule_15"


def write(folder, tasks, searchers, ablations=False):
    """Writes `results.md` and `results.png`, named `held_back` for such tasks.

    Args:
        folder: Of the results, a path.
        tasks: `{name: Task}`.
        searchers: Names; those without results are left out.
        ablations: Whether to name the files `ablations`. Defaults to `False`.
    """
    results = {
        task_name: {
            name: records for name in searchers if (records := read(folder, task_name, task, name))
        }
        for task_name, task in tasks.items()
    }
    results = {name: of_task for name, of_task in results.items() if of_task}
    if not results:
        return
    stem = "held_back" if any(task.held_back for task in tasks.values()) else "results"
    stem = "ablations" if ablations else stem
    baseline = BASELINE_OF_ABLATIONS if ablations else BASELINE
    text = "\n".join(lines(results, baseline)) + "\n"
    (folder / f"{stem}.md").write_text(text, encoding="utf-8")
    draw(results).savefig(folder / f"{stem}.png", dpi=90)


# ------------------------------------------------------------------------------------ numbers
def accuracies(records, cost):
    """`{seed: test accuracy in percent}` at a cost, of the searches that had an answer by then."""
    at_cost = {seed: record["at"][str(cost)] for seed, record in records.items()}
    return {seed: 100 * mark["test_accuracy"] for seed, mark in at_cost.items() if mark}


def mean_and_half(values):
    """A mean and half its 95% interval, by Student's t; NaN where it is not known."""
    from scipy import stats

    values = np.asarray(values, "float64")
    if len(values) < 2:
        return (values.mean() if len(values) else np.nan), np.nan
    return values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)


def differences(records, baseline, cost):
    """Points of test accuracy above the baseline at the same cost, of the seeds that both have."""
    ours, theirs = accuracies(records, cost), accuracies(baseline, cost)
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


# -------------------------------------------------------------------------------------- table
def lines(results, baseline=BASELINE):
    """The lines of `results.md`.

    Args:
        results: `{task: {searcher: {seed: record}}}`.
        baseline: The searcher that the others are compared with, its name.
    """
    text = [
        "# Outer rules on the proving ground",
        "",
        "Written by `python -m benchmarks.outer_rules`. Test accuracy in percent after so many",
        "plain trainings, a pass with hypergradients counted as four; means and 95% intervals over",
        f"seeds, each of which tests its answer with {TEST_TRAININGS} trainings. The answer of a",
        "search that has ended stays. `–`: no seed has an answer yet.",
    ]
    for task_name, of_task in results.items():
        text += ["", f"## {task_name}", "", *_header("seeds", "bad tests", "cost")]
        for name, records in of_task.items():
            cells = [_cell(list(accuracies(records, cost).values()), "") for cost in COSTS]
            last = [record["at"][str(COSTS[-1])] for record in records.values()]
            diverged = sum(mark["diverged"] for mark in last if mark)
            spent = np.mean([record["cost"] for record in records.values()])
            cells += [len(records), f"{diverged} of {TEST_TRAININGS * len(records)}"]
            text.append(_row([name, *cells, f"{spent:.1f}"]))
    text += ["", f"## Points above {baseline} at the same cost, seed by seed"]
    for task_name, of_task in results.items():
        if baseline not in of_task:
            continue
        text += ["", f"### {task_name}", "", *_header()]
        for name, records in of_task.items():
            if name != baseline:
                theirs = of_task[baseline]
                cells = [_cell(differences(records, theirs, cost), "+") for cost in COSTS]
                text.append(_row([name, *cells]))
    return text


def _header(*more):
    titles = ["searcher", *map(str, COSTS), *more]
    return [_row(titles), _row(["---"] * len(titles))]


def _row(cells):
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _cell(values, sign):
    if not values:
        return "–"
    mean, half = mean_and_half(values)
    return f"{mean:{sign}.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else "")


# ------------------------------------------------------------------------------------ picture
def draw(results):
    """A figure with a panel for every task."""
    columns = min(2, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(7 * columns, 4.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, (task_name, of_task) in zip(panels, results.items()):
        tops = []
        for name, records in of_task.items():
            points = [mean_and_half(list(accuracies(records, cost).values())) for cost in COSTS]
            means, halves = np.array(points).T
            style = "o-" if name.startswith("rule") else "s--"
            color = f"C{list(SEARCHERS).index(name)}"
            panel.plot(COSTS, means, style, markersize=4, label=name, color=color)
            panel.fill_between(COSTS, means - halves, means + halves, alpha=0.15, color=color)
            tops.append(means)
        # Early searches would compress the interesting part of the axis.
        top = np.nanmax(tops)
        panel.set_ylim(max(np.nanmin(tops) - 1, top - 12), top + 1)
        panel.set(title=task_name, xscale="log", xticks=COSTS)
        panel.set(xlabel="cost in plain trainings", ylabel="test accuracy, percent")
        panel.xaxis.set_major_formatter(ticker.ScalarFormatter())
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    for panel in panels[len(results) :]:
        panel.remove()
    return figure
