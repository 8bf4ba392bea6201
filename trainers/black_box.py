"""Searches without hypergradients, by Optuna: what every other search is compared with.

    pip install "keras-fds[baselines]"
    python -m trainers.search --config=configs/digits.py --config.method=tpe --config.budget=40 \
        --workdir=runs/digits-tpe
    python -m trainers.search --config=… --workdir=… --config.method=tpe --config.space=values \
        --config.hyperband

`config.method` is the sampler: "random", "tpe" (multivariate), "gp" (Optuna needs torch for it) or
"cma_es" (and cmaes for this one). Every trial is a plain training over the config's horizon from
new weights (`trainers.trials`); its value is the validation loss at the end. With
`config.space="values"` the sampler chooses every value that a search learns, with "decay" what an
expert tunes: peak, warm-up and end of a cosine decay, and one number for everything else. Ranges
are those that the default rule searches; a vector's elements are chosen one by one.
`config.hyperband` ends poor trials early, after 1, 3, 9, … epochs.

The folder --workdir then holds config.json, trials.log (Optuna's journal), history.csv (a row for
every trial) and schedules.json (of the best trial), for `trainers.train`. The same command after
an interrupt goes on. Several processes may run it at once: they share the trials. `config.storage`
is the URL of a database in place of the journal, for processes on several machines.
"""

import csv
import hashlib
import importlib
import itertools
import json
import math
import pathlib
import time

from trainers import experiment, workdirs
from trainers.trials import Trials

_PACKAGES = {"gp": "torch", "cma_es": "cmaes"}  # What Optuna's samplers need.
_REDUCTION = 3  # Of Hyperband: a trial may end after so many times as many epochs as before.
_LONGEST_WARMUP = 0.3
_HIGHEST_END = 0.5  # In parts of the peak.
_BROKEN_DOWN = 1e6  # The loss that a sampler gets for a training that broke down.


def suggest(trial, hyperparameters, space):
    """The values that a trial is to be trained with, `{name: float64 [num_buckets, *shape]}`.

    Args:
        trial: An `optuna.Trial`.
        hyperparameters: List of `keras_fds.Hyperparameter`. With the space `"decay"` the learning
            rate must have knots, and vectors stay at their start.
        space: `"values"` or `"decay"`.
    """
    import numpy as np

    found = {}
    for each in hyperparameters:
        _, low, high = each.searched

        def number(name, low=low, high=high, each=each):
            return float(each.from_searched(np.array(trial.suggest_float(name, low, high))))

        count = each.num_buckets
        if space == "values":
            shape = (count, *each.shape)
            names = ["".join([each.name, *(f"[{i}]" for i in at)]) for at in np.ndindex(shape)]
            found[each.name] = np.reshape([number(name) for name in names], shape)
        elif each.is_vector:
            found[each.name] = each.initial_values
        elif each.name == "learning_rate":
            peak = number("peak")
            warmup = trial.suggest_float("warmup", 0.0, _LONGEST_WARMUP)
            end = trial.suggest_float("end", 0.0, _HIGHEST_END)
            found[each.name] = peak * decay(np.linspace(0, 1, count), warmup, end)
        else:
            found[each.name] = np.full(count, number(each.name))
    return found


def decay(times, warmup, end):
    """A linear warm-up to 1, then a cosine decay.

    Args:
        times: Parts of the horizon, float64 array.
        warmup: Where the warm-up ends.
        end: The value at 1.
    """
    import numpy as np

    after = np.clip((times - warmup) / (1 - warmup), 0, 1)
    fall = end + (1 - end) * (1 + np.cos(np.pi * after)) / 2
    # It begins at a tenth: a step with a rate of zero would be wasted.
    rise = 0.1 + 0.9 * times / warmup if warmup > 0 else np.ones_like(times)
    return np.where(times < warmup, rise, fall)


def search(config, workdir, overwrite=False, tell=print):
    """Runs trials until the budget is spent, and writes the results into a folder.

    Args:
        config: See `Trials`; `method` is a sampler.
        workdir: Folder, made when it does not exist. Trials that it holds count.
        overwrite: Whether to replace older results there. Defaults to `False`.
        tell: Called with a line of text after each trial. Defaults to `print`.

    Returns:
        The `optuna.Study`; its trials have the user attributes `"spent"` (plain trainings) and,
        unless they ended early or broke down, `"val_accuracy"`.

    Raises:
        ValueError: Before any training, when something in the config is unknown or does not fit, or
            the folder holds other results.
        ImportError: A package of the extra `baselines` is missing.

    Example:

    >>> config = configs.digits.get_config()
    >>> config.method = "tpe"
    >>> search(config, "runs/tpe").best_value
    """
    import optuna

    check_package(config.method)
    trials = Trials(config)
    limit = experiment.option(config, "seconds")
    limit = math.inf if limit is None else limit
    if not trials.budget >= 1:
        raise ValueError(f"`budget` must be at least 1. Received: budget={trials.budget}")
    if not limit > 0:
        raise ValueError(f"`seconds` must be above 0. Received: seconds={limit}")
    hyperband = experiment.option(config, "hyperband")
    workdir = _begun(workdir, config, overwrite)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(config, trials, workdir, overwrite)
    if any(trial.state.is_finished() for trial in study.trials):
        _write(workdir, study, trials)  # What other processes have found, too.
    while spent(study) + 1 <= trials.budget + 1e-9 and _seconds(study.trials) < limit:
        start = time.monotonic()
        # Anew for every trial: what is random depends on the trials there are alone.
        study.sampler = _sampler(config.method, config.seed + 1000 * len(study.trials))
        trial = study.ask()
        values = suggest(trial, trials.hyperparameters, trials.space)
        pruning = _Pruning(trial, trials.epochs) if hyperband else None
        try:
            logs, part = trials.train(
                values,
                config.seed + 1000 + trial.number,
                {"epochs": pruning.rungs, "call": pruning} if pruning else None,
            )
        except optuna.TrialPruned:
            logs, part = None, pruning.epochs / trials.epochs
        trial.set_user_attr("spent", part)
        trial.set_user_attr("seconds", round(time.monotonic() - start, 3))
        if logs is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            loss = logs["val_loss"]
            trial.set_user_attr("val_accuracy", logs.get("val_accuracy"))
            study.tell(trial, loss if math.isfinite(loss) else _BROKEN_DOWN)
        _write(workdir, study, trials)
        done = study.trials[trial.number]
        early = "" if _is_complete(done) else " when it ended early"
        tell(
            f"Trial {done.number}: validation loss {done.value:.4f}{early}; "
            f"{spent(study):.2f} of {trials.budget:g} spent"
        )
    return study


def check_package(method):
    """Checks that there is what a sampler needs.

    Raises:
        ImportError: A package is missing.
    """
    for name in ("optuna", _PACKAGES.get(method)):
        if name is not None:
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ImportError(
                    f"The method {method!r} needs {name}: pip install {name}", name=name
                ) from error


def _study(config, trials, workdir, overwrite):
    import optuna

    url = experiment.option(config, "storage")
    digest = hashlib.sha256(json.dumps(_of_study(config), sort_keys=True).encode()).hexdigest()
    name = f"{config.method}, {trials.space}, seed {config.seed}, {digest[:16]}"
    try:
        storage = optuna.storages.get_storage(_storage(url, workdir))
    except Exception as error:
        if url is None:
            raise
        raise ValueError(
            "`storage` must be the URL of a database that can be reached, such as "
            f"sqlite:///runs/trials.db. Received: storage={url!r} ({type(error).__name__}: {error})"
        ) from error
    if overwrite and name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
    return optuna.create_study(
        study_name=name,
        storage=storage,
        load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(
            max_resource=trials.epochs, reduction_factor=_REDUCTION
        )
        if experiment.option(config, "hyperband")
        else optuna.pruners.NopPruner(),
    )


def _of_study(config):
    """What the trials of a study share; a database may hold many studies."""
    fields = workdirs.search_config(config)
    return {name: value for name, value in fields.items() if name not in ("storage", "data_dir")}


def spent(study):
    """What the trials of a study cost so far, in plain trainings."""
    return sum(each.user_attrs.get("spent", 0.0) for each in study.trials)


def _seconds(trials):
    return sum(each.user_attrs.get("seconds", 0.0) for each in trials)


def _is_complete(trial):
    import optuna

    return trial.state == optuna.trial.TrialState.COMPLETE


class _Pruning:
    """Reports the validation loss at the rungs of Hyperband, and ends poor trials."""

    def __init__(self, trial, most):
        self.trial, self.epochs = trial, 0
        self.rungs = [_REDUCTION**k for k in range(most) if _REDUCTION**k < most]

    def __call__(self, epochs, logs):
        import optuna

        self.epochs = epochs
        self.trial.report(logs["val_loss"], step=epochs)
        if self.trial.should_prune():
            raise optuna.TrialPruned


def _sampler(name, seed):
    import warnings

    import optuna

    samplers = optuna.samplers
    makers = {
        "random": samplers.RandomSampler,
        "tpe": lambda seed: samplers.TPESampler(seed=seed, multivariate=True),
        "gp": samplers.GPSampler,
        "cma_es": samplers.CmaEsSampler,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return makers[name](seed=seed)


def _storage(url, workdir):
    if url is not None:
        return url
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(workdir / workdirs.JOURNAL)))


def _begun(workdir, config, overwrite):
    """The folder as a path; it holds nothing, or earlier trials of the same search."""
    path = pathlib.Path(workdir)
    content = workdirs.search_config(config)
    shared = (path / workdirs.JOURNAL).exists() or experiment.option(config, "storage") is not None
    goes_on = not overwrite and shared and (path / "config.json").exists()
    if goes_on and workdirs.search_config_of(path) != content:
        raise ValueError(
            "The workdir holds trials of another config. Choose another one, or pass --overwrite. "
            f"Received: workdir={workdir}"
        )
    path = workdirs.check_workdir(workdir, overwrite or goes_on)
    if overwrite:
        (path / workdirs.JOURNAL).unlink(missing_ok=True)
    if goes_on:
        workdirs.write_config(path, config)
    else:
        workdirs.begin_workdir(path, config)
    return path


def _write(workdir, study, trials):
    """Writes history.csv and schedules.json; any process writes what all have done."""
    import numpy as np
    import optuna

    import keras_fds
    from keras_fds import files

    def values(trial):
        fixed = optuna.trial.FixedTrial(trial.params)
        return suggest(fixed, trials.hyperparameters, trials.space)

    done = [each for each in study.trials if each.state.is_finished()]
    costs = itertools.accumulate(each.user_attrs.get("spent", 0.0) for each in done)
    times = itertools.accumulate(each.user_attrs.get("seconds", 0.0) for each in done)
    rows, lowest = [], _BROKEN_DOWN
    for each, cost, seconds in zip(done, costs, times):
        best = _is_complete(each) and each.value < lowest
        lowest = each.value if best else lowest
        row = {
            "trial": each.number,
            "complete": int(_is_complete(each)),
            "best": int(best),
            "val_loss": each.value,
            "val_accuracy": each.user_attrs.get("val_accuracy"),
            "spent": cost,
            "seconds": round(seconds, 3),
        }
        for name, chosen in values(each).items():
            for at, number in np.ndenumerate(chosen):
                row["".join([name, *(f"[{i}]" for i in at)])] = number
        rows.append(row)
    with files.replacement(workdir / "history.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    complete = [each for each in done if _is_complete(each) and each.value < _BROKEN_DOWN]
    if complete:
        best = min(complete, key=lambda each: each.value)
        keras_fds.save_schedules(workdir / "schedules.json", trials.schedules(values(best)))


def conclusion(workdir):
    """The message about finished trials; `workdir` is a `pathlib.Path`."""
    train = experiment.trainer_command(
        "trainers.train", f"--schedules={workdir / 'schedules.json'}", f"--workdir={workdir}-train"
    )
    done = workdirs.read_history(workdir)
    losses = [row["val_loss"] for row in done if row["complete"]]
    return (
        f"\nThe lowest validation loss of {len(done)} trials: {min(losses):.4f}\n"
        f"To train with its schedules, type:\n  {train}"
    )
