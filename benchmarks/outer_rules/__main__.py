"""Many searches on small real inner loops, on one axis of cost: `python -m benchmarks.outer_rules`.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.outer_rules
    python -m benchmarks.outer_rules --tasks=text_attention --searchers=rule_7,tpe_3 --seeds=5
    python -m benchmarks.outer_rules --report
    python -m benchmarks.outer_rules --held_back
    python -m benchmarks.outer_rules --ablations

The first runs every searcher on every open task with twenty seeds, then writes a table
(`results.md`) and a picture (`results.png`) beside the results. Existing results are not run again,
so the program can be stopped at any time. The last one runs the tasks that are held back: do so
once, when a rule is finished. The ablations take away one part of the rule each, and write
`ablations.md`.

Costs are in plain trainings of the task's horizon. A pass with hypergradients counts as four plain
trainings of its own horizon, whatever time it takes here.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks. Defaults to all open ones.")
_SEARCHERS = flags.DEFINE_list("searchers", None, "Names of searchers. Defaults to all.")
_SEEDS = flags.DEFINE_integer("seeds", 20, "Number of seeds, from 0.", lower_bound=1)
_HELD_BACK = flags.DEFINE_bool("held_back", False, "Take the tasks that are held back.")
_ABLATIONS = flags.DEFINE_bool("ablations", False, "Take the ablations of the rule.")
_REPORT = flags.DEFINE_bool("report", False, "Run nothing, only write the table and the picture.")
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/outer_rules", "Folder for the results.")


def main(_):
    # JAX, Optuna and TensorFlow take seconds to import; `--help` need not wait for them.
    from benchmarks.outer_rules import report, run, tasks

    names = _TASKS.value or (tasks.HELD_BACK if _HELD_BACK.value else tasks.OPEN)
    searchers = _SEARCHERS.value or list(
        ["rule_15", *run.ABLATIONS] if _ABLATIONS.value else run.COMPARED
    )
    unknown = [name for name in names if name not in tasks.TASKS]
    unknown += [name for name in searchers if name not in run.SEARCHERS]
    if unknown:
        raise app.UsageError(
            f"Unknown: {', '.join(unknown)}. Tasks are {', '.join(tasks.TASKS)}; searchers are "
            f"{', '.join(run.SEARCHERS)}."
        )
    chosen = {name: tasks.TASKS[name] for name in names}
    if not _HELD_BACK.value and any(task.held_back for task in chosen.values()):
        raise app.UsageError("A task that is held back needs --held_back. Look at it once only.")
    folder = pathlib.Path(_OUTPUT.value)
    if not _REPORT.value:
        run.run(folder, chosen, searchers, range(_SEEDS.value))
    report.write(folder, chosen, searchers, ablations=_ABLATIONS.value)


if __name__ == "__main__":
    app.run(main)
