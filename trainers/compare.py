"""Runs several methods with several seeds on one task or several: a table, pictures, TensorBoard.

    python -m trainers.compare --config=configs/digits.py --workdir=runs/digits-compare
    python -m trainers.compare --config=configs/digits.py --workdir=… --methods=learned,cosine \
        --seeds=3 --seconds=120
    python -m trainers.compare --config=configs/all_tasks.py --workdir=… --tasks=digits,low_data

`config.methods` is a dict: for every method the fields of the config that it changes; without it
all rivals of `trainers.methods.rivals` run. `config.tasks` is a dict of configs. A method learns
with every seed (`trainers.search`), then trains with them on the whole training split and tests
(`trainers.train`), with the same training seeds for all methods. Nothing is chosen by the test
split. One method runs at a time.

Methods spend the budget of their configs, in plain trainings. With --seconds a plain training is
timed first, and every method gets as many as fit in that time, and ends when it is over; a method
with twice the config's budget has twice the time. A grid has all its points, as far as it gets.

The folder --workdir then holds METHOD/SEED/search and METHOD/SEED/train, results.json (a record for
every method and seed), results.csv, results.md (the table), figure_seconds.png and figure_cost.png
(accuracy and regret against time and plain trainings) and tensorboard/ (the HParams table); with
several tasks a folder of each, and all tables. The same command after an interrupt resumes;
finished records are not run again, so methods and seeds can be added.
"""

import json
import math
import pathlib
import time

from absl import flags

from trainers import black_box, experiment, records, report, workdirs
from trainers.methods import rivals
from trainers.search import learn
from trainers.seeds import SEEDS
from trainers.stopwatch import read_seconds
from trainers.train import train
from trainers.trials import seconds_a_training

_METHODS = flags.DEFINE_list("methods", None, "Which methods; None: all.")
_TASKS = flags.DEFINE_list("tasks", None, "Which of the config's tasks; None: all.")
_SECONDS = flags.DEFINE_float("seconds", None, "What learning may take; None: budgets count.", 0.1)
flags.adopt_module_key_flags(experiment)
flags.declare_key_flag("seeds")


def compare(config, workdir, methods=None, seeds=5, seconds=None, tasks=None, tell=print):
    """Runs what is missing, and writes the results of all that is there.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`, perhaps with `methods`; or
            one whose `tasks` are such configs.
        workdir: Folder, made when it does not exist.
        methods: Names. Defaults to all.
        seeds: Number of seeds, from `config.seed`. Defaults to `5`.
        seconds: What learning may take, for each method and seed. Defaults to `None`: the budgets
            in plain trainings count.
        tasks: Names, where the config has several. Defaults to all.
        tell: Called with a line of text after each record. Defaults to `print`.

    Returns:
        The records (`trainers.records`), `{task: [{"method", "seed", "accuracies", …}, …]}`; a
        single task has the name `""`.

    Raises:
        ValueError: Before any training, when a method or task is unknown or its config does not
            fit, the time is too short, or the folder holds a comparison of another config.
        ImportError: Before any training, when a package that a method needs is missing.

    Example:

    >>> compare(configs.digits.get_config(), "runs/digits", methods=["learned"], seeds=1)
    """
    workdir, several = pathlib.Path(workdir), config.get("tasks")
    if not several:
        if tasks:
            raise ValueError(f"The config has no `tasks`. Received: tasks={tasks}")
        found = {"": _Comparison(config, workdir, methods, seconds)}
    else:
        unknown = set(tasks or ()) - set(several)
        if unknown:
            raise ValueError(
                f"The tasks must be among those of the config: {', '.join(several)}. "
                f"Received: tasks={tasks}"
            )
        found = {
            name: _Comparison(several[name], workdir / name, methods, seconds)
            for name in tasks or several
        }
    for each in found.values():
        each.begin()
    # Seed by seed: when the run is stopped, all methods have equally many seeds.
    for seed in range(seeds):
        for name, each in found.items():
            each.run(seed, lambda line, name=name: tell(f"{name}, {line}" if name else line))
            if several:
                records.write(workdir, {n: one.records for n, one in found.items() if one.records})
    return {name: each.records for name, each in found.items()}


def methods_of(config, in_time=False):
    """The methods of a config, `{name: {field: value}}`: its own, or all rivals."""
    return config.methods.to_dict() if config.get("methods") else rivals(config, in_time)


def of_method(config, method):
    """The config of a method: a copy with the fields that it changes, and without `methods`."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        for name, value in methods_of(config, in_time=True)[method].items():
            setattr(changed, name, value)
        if "methods" in changed:
            del changed.methods
    return changed


class _Comparison:
    """All methods on one task, in a folder; nothing is trained or written before `begin`."""

    def __init__(self, config, folder, methods, seconds):
        experiment.check_config(config)
        self.config, self.folder, self.seconds = config, folder, seconds
        self.known = list(methods_of(config, in_time=seconds is not None))
        self.methods = self.known if methods is None else methods
        if set(self.methods) - set(self.known):
            raise ValueError(
                f"The methods must be among those of the config: {', '.join(self.known)}. "
                f"Received: methods={self.methods}"
            )
        for method in self.methods:
            changed = of_method(config, method)
            experiment.check_config(changed)
            experiment.lengths(changed)
            experiment.make_optimizer(changed)
            if experiment.is_black_box(changed):
                black_box.check_package(changed.method)
        self.content = {}

    @property
    def records(self):
        return self.content["records"]

    def begin(self):
        """Reads the records that the folder holds, or times a plain training if it must be known.

        Raises:
            ValueError: The folder holds another comparison, or the time is too short.
        """
        from keras_fds import files

        experiment.load_arrays(self.config, "test")  # A wrong folder is told now.
        files.writable_directory(self.folder, "workdir")
        config = workdirs.fields_of(self.config)
        path = self.folder / "results.json"
        if path.exists():
            self.content = json.loads(path.read_text())
            self._check_same(config)
            self.content["config"] = config
            return
        self.content = {"config": config, "machine": report.machine(), "records": []}
        if self.seconds is not None:
            one = seconds_a_training(_timed(self.config))
            if self.seconds < 2 * one:
                raise ValueError(
                    f"A plain training takes {one:.1f} seconds, and a search must have time for "
                    f"two. Received: seconds={self.seconds:g}"
                )
            self.content |= {"seconds": self.seconds, "seconds_a_training": one}
            self._write()  # What is resumed has the same budgets.

    def _check_same(self, config):
        moving = ("methods", "seed", "data_dir", "cache_dir")
        before, now = (
            {name: value for name, value in each.items() if name not in moving}
            for each in (
                {**self.content["config"], "--seconds": self.content.get("seconds")},
                {**config, "--seconds": self.seconds},
            )
        )
        # Fields that older versions lack.
        meant = workdirs.OPTIONAL_FIELDS
        differing = sorted(
            name
            for name in before | now
            if before.get(name, meant.get(name)) != now.get(name, meant.get(name))
        )
        if differing:
            raise ValueError(
                "The workdir holds a comparison with another config, which differs in "
                f"{', '.join(differing)}. Choose another workdir. Received: workdir={self.folder}"
            )

    def run(self, number, tell):
        """Runs what is missing of a seed, and writes all results."""
        seed = self.config.seed + number
        for method in self.methods:
            if any((each["method"], each["seed"]) == (method, seed) for each in self.records):
                continue
            folder = self.folder / method / str(seed)
            record = _run(self._config(method), method, seed, folder)
            self.records.append(record)
            names = [*self.known, *(each["method"] for each in self.records)]
            self.records.sort(key=lambda each: (names.index(each["method"]), each["seed"]))
            self._write()
            accuracies = ", ".join(f"{each:.2%}" for each in record["accuracies"])
            tell(f"{method}, seed {seed}: test accuracy {accuracies}")
        self._write()

    def _config(self, method):
        """The config of a method, with its budget as it fits in the time there is."""
        changed = of_method(self.config, method)
        if self.seconds is None:
            return changed
        is_grid, times = changed.outer.name == "DecayGrid", 1.0
        if not is_grid and changed.budget and self.config.budget:
            times = changed.budget / self.config.budget
        with changed.unlocked():
            changed.seconds = times * self.seconds
            if changed.outer_steps is None and not is_grid:
                changed.budget = changed.seconds / self.content["seconds_a_training"]
        return changed

    def _write(self):
        workdirs.write_json(self.folder / "results.json", self.content)
        if self.records:
            records.write(self.folder, {experiment.task_name(self.config): self.records})


def _timed(config):
    """A config whose plain training is timed: with what an expert would choose."""
    changed = config.copy_and_resolve_references()
    epochs = experiment.lengths(config)["epochs"]
    with changed.unlocked():
        changed.epochs = (math.ceil(epochs[-1] if isinstance(epochs, list) else epochs),)
        changed.outer_steps, changed.space = None, "decay"
        changed.hyperparameters = [
            each for each in config.hyperparameters if each["name"] != "sample_weight"
        ]
    return changed


def _run(config, method, seed, folder):
    """The record of a method with a seed."""
    config.seed, search, start = seed, folder / "search", time.monotonic()
    over = config.get("seconds")
    if not over or max(read_seconds(search), default=0.0) < over:  # It had ended by the clock.
        anew = experiment.is_online(config)  # One training, which does not go on.
        learn(config, search, overwrite=anew, verbose=0, pictures=False)
    searched = time.monotonic()
    rows, ends, schedules = workdirs.read_history(search), read_seconds(search), None
    if (search / "schedules.json").exists():
        schedules = json.loads((search / "schedules.json").read_text())
        config.seed = 1000 + config.train_seeds * seed
        found = train(
            config, search / "schedules.json", folder / "train", overwrite=True, verbose=0
        )
        found = found["seeds"]
    else:  # No training was finite: as good as guessing.
        classes = experiment.load_arrays(config, "test").num_classes
        found = [{"accuracy": 1 / classes, "loss": math.log(classes)}]
    for row, end in zip(rows, ends):
        row["seconds"] = end
    best = workdirs.best_row(rows)
    if experiment.is_online(config) and rows:
        best = rows[-1]
    return {
        "method": method,
        "seed": seed,
        "accuracies": [each["accuracy"] for each in found],
        "losses": [each["loss"] for each in found],
        "learned_nothing": schedules is None,
        "validation_accuracy": best and best.get("val_accuracy"),
        "plain_trainings": rows[-1].get("spent") if rows else None,
        "measured": _measured(rows[-1:] if experiment.is_online(config) else rows),
        "search_seconds": (rows or [{}])[-1].get("seconds", round(searched - start, 1)),
        "train_seconds": round(time.monotonic() - searched, 1),
        "schedules": schedules,
    }


def _measured(rows):
    """`[[seconds, plain trainings, validation accuracy], …]` of what went over the whole horizon.

    An outer step's row has its horizon; all others are of whole trainings.
    """
    longest = max((row.get("horizon", 0.0) for row in rows), default=0.0)
    return [
        [row.get("seconds"), row.get("spent"), row["val_accuracy"]]
        for row in rows
        if row.get("horizon", 0.0) == longest and "val_accuracy" in row
    ]


def main():
    """The program."""
    workdir = pathlib.Path(experiment.WORKDIR.value)
    try:
        found = compare(
            experiment.CONFIG.value,
            workdir,
            _METHODS.value,
            SEEDS.value or 5,
            _SECONDS.value,
            _TASKS.value,
        )
    except KeyboardInterrupt:
        print(f"\nInterrupted. The same command runs what {workdir} lacks.")
        return 130
    except ImportError as error:
        raise ValueError(f"{error}; or leave it out by --methods.") from error
    for name, of_task in found.items():
        print(f"\n{name}\n{records.table(of_task)}")
    print(f"\nAll results: {workdir}; HParams: tensorboard --logdir {workdir / 'tensorboard'}")
    return 0


if __name__ == "__main__":
    experiment.run(main)
