"""Searches without hypergradients, by Optuna: what every other search is compared with.

    pip install "keras-fds[baselines]"
    python -m trainers.search --config=configs/digits.py --config.method=tpe --config.budget=40 \
        --workdir=runs/digits-tpe
    python -m trainers.search --config=… --workdir=… --config.method=tpe --config.space=values \
        --config.hyperband

`config.method` is the sampler: "random", "tpe" (multivariate), "gp" (Optuna needs torch for it) or
"cma_es" (and cmaes for this one). Every trial is a plain training over the config's horizon with
stock `model.fit`, from new weights, in one compiled step; its value is the validation loss at the
end. With `config.space="values"` the sampler chooses every value that a search learns, with "decay"
what an expert tunes: peak, warm-up and end of a cosine decay, and one number for everything else.
Ranges are those that the default rule searches. `config.hyperband` ends poor trials early, after
whole epochs.

The folder --workdir then holds config.json, trials.log (Optuna's journal), history.csv (a row for
every trial) and schedules.json (of the best trial), for `trainers.train`. The same command after
an interrupt goes on. Several processes may run it at once: they share the trials. `config.storage`
is the URL of a database in place of the journal.
"""

import csv
import itertools
import pathlib

from trainers import experiment, workdirs

JOURNAL = "trials.log"
_KNOTS = 20  # Of a decay's learning rate.
_LONGEST_WARMUP = 0.3
_HIGHEST_END = 0.5  # In parts of the peak.
_BROKEN_DOWN = 1e6  # The loss that a sampler gets for a training that broke down.


def suggest(trial, hyperparameters, space):
    """The values that a trial is to be trained with, `{name: float64 [num_buckets]}`.

    Args:
        trial: An `optuna.Trial`.
        hyperparameters: List of `keras_fds.Hyperparameter`. With the space `"decay"` the learning
            rate must have knots.
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
            names = [f"{each.name}[{k}]" for k in range(count)]
            found[each.name] = np.array([number(name) for name in names])
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


class Trials:
    """The inner loop of a config, to be run with one schedule after the other.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`; its lengths are `epochs` and
            `budget`.

    Raises:
        ValueError: Something in the config is unknown or does not fit.
    """

    def __init__(self, config):
        experiment.check_config(config)
        lengths = experiment.lengths(config)
        if "budget" not in lengths:
            raise ValueError(
                "A black box searches within a `budget`, over one number of `epochs`. "
                f"Received: outer_steps={config.outer_steps}, epochs={config.epochs}"
            )
        self.epochs, self.budget = lengths["epochs"], lengths["budget"]
        if self.epochs != int(self.epochs):
            raise ValueError(f"A black box trains for whole epochs. Received: epochs={self.epochs}")
        self.space = experiment.option(config, "space")
        if self.space == "decay":
            config = _with_knots(config)
        self.config, self.arrays = config, experiment.load_arrays(config, "train")
        self.training, self.validation = self._split()
        self.horizon = -(-len(self.training[0]) // config.batch_size) * int(self.epochs)
        self.model = experiment.make_model(config, self.arrays)
        self.model.optimizer.build(self.model.trainable_variables)

    def _split(self):
        """Pairs `(x, y)` for training and for validation."""
        import numpy as np

        config, x, y = self.config, self.arrays.x, self.arrays.y
        given = experiment.validation_of(config)
        if "validation_data" in given:
            return (x, y), given["validation_data"]
        order = np.random.default_rng(config.seed).permutation(len(x))
        held_out, rest = np.split(order, [int(config.validation_split * len(order))])
        if not len(held_out):
            raise ValueError(
                "A black box chooses by held-out examples. "
                f"Received: validation_split={config.validation_split}"
            )
        return (x[rest], y[rest]), (x[held_out], y[held_out])

    @property
    def hyperparameters(self):
        return self.model.optimizer.hyperparameters

    def schedules(self, values):
        """`{name: keras_fds.BucketedSchedule}` of bucket values."""
        import keras_fds

        return {
            h.name: keras_fds.BucketedSchedule(values[h.name], self.horizon, h.interpolation)
            for h in self.hyperparameters
        }

    def train(self, values, seed, at_epoch_end=None):
        """The Keras logs of a training: losses and metrics after its last epoch.

        Args:
            values: `{name: float64 [num_buckets]}`.
            seed: Of initial weights and orders.
            at_epoch_end: Called with the number of epochs and the logs after each; with it, every
                epoch is validated. It may raise to end the training. Defaults to `None`.
        """
        import keras

        keras.utils.set_random_seed(seed)
        fresh = experiment.make_model(self.config, self.arrays)
        self.model.set_weights(fresh.get_weights())
        self.model.optimizer.reset_slots()
        self.model.optimizer.schedules = self.schedules(values)
        called = []
        if at_epoch_end:
            called = [
                keras.callbacks.LambdaCallback(
                    on_epoch_end=lambda epoch, logs: at_epoch_end(epoch + 1, logs)
                )
            ]
        history = self.model.fit(
            *self.training,
            batch_size=self.config.batch_size,
            epochs=int(self.epochs),
            validation_data=self.validation,
            validation_batch_size=self.config.validation_batch_size,
            validation_freq=1 if at_epoch_end else int(self.epochs),
            callbacks=called,
            verbose=0,
        )
        return {name: each[-1] for name, each in history.history.items()}


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
    import math

    import optuna

    trials = Trials(config)
    hyperband = experiment.option(config, "hyperband")
    workdir = _begun(workdir, config, overwrite)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{config.method}, {trials.space}",
        storage=_storage(experiment.option(config, "storage"), workdir),
        load_if_exists=True,
        pruner=optuna.pruners.HyperbandPruner(max_resource=int(trials.epochs))
        if hyperband
        else optuna.pruners.NopPruner(),
    )
    while spent(study) + 1 <= trials.budget + 1e-9:
        # Anew for every trial: what is random depends on the trials there are alone.
        study.sampler = _sampler(config.method, config.seed + 1000 * len(study.trials))
        trial = study.ask()
        values = suggest(trial, trials.hyperparameters, trials.space)
        pruning = _Pruning(trial) if hyperband else None
        try:
            logs = trials.train(values, config.seed + 1000 + trial.number, pruning)
        except optuna.TrialPruned:
            trial.set_user_attr("spent", pruning.epochs / trials.epochs)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            loss = logs["val_loss"]
            trial.set_user_attr("spent", 1.0)
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


def spent(study):
    """What the trials of a study cost so far, in plain trainings."""
    return sum(each.user_attrs.get("spent", 0.0) for each in study.trials)


def _is_complete(trial):
    import optuna

    return trial.state == optuna.trial.TrialState.COMPLETE


class _Pruning:
    """Reports the validation loss after every epoch, and ends poor trials."""

    def __init__(self, trial):
        self.trial, self.epochs = trial, 0

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

    return JournalStorage(JournalFileBackend(str(workdir / JOURNAL)))


def _with_knots(config):
    """The config with knots of the learning rate and one number of everything else."""
    config = config.copy_and_resolve_references()
    keep = ("name", "min_value", "max_value", "scale")
    found = []
    for each in config.hyperparameters:
        own = {name: each[name] for name in keep if name in each}
        if own["name"] == "learning_rate":
            own |= {"num_buckets": _KNOTS, "interpolation": "linear"}
        found.append(own)
    with config.unlocked():
        config.hyperparameters = found
    return config


def _begun(workdir, config, overwrite):
    """The folder as a path; it holds nothing, or earlier trials of the same search."""
    path = pathlib.Path(workdir)
    content = workdirs.search_config(config)
    goes_on = not overwrite and (path / JOURNAL).exists() and (path / "config.json").exists()
    if goes_on and workdirs.search_config_of(path) != content:
        raise ValueError(
            "The workdir holds trials of another config. Choose another one, or pass --overwrite. "
            f"Received: workdir={workdir}"
        )
    path = workdirs.check_workdir(workdir, overwrite or goes_on)
    if overwrite:
        (path / JOURNAL).unlink(missing_ok=True)
    if goes_on:
        workdirs.write_config(path, config)
    else:
        workdirs.begin_workdir(path, config)
    return path


def _write(workdir, study, trials):
    """Writes history.csv and schedules.json; any process writes what all have done."""
    import optuna

    import keras_fds
    from keras_fds import files

    def values(trial):
        fixed = optuna.trial.FixedTrial(trial.params)
        return suggest(fixed, trials.hyperparameters, trials.space)

    done = [each for each in study.trials if each.state.is_finished()]
    costs = itertools.accumulate(each.user_attrs.get("spent", 0.0) for each in done)
    rows = [
        {
            "trial": each.number,
            "complete": int(_is_complete(each)),
            "val_loss": each.value,
            "val_accuracy": each.user_attrs.get("val_accuracy"),
            "spent": cost,
            **{f"{n}[{k}]": v for n, of_one in values(each).items() for k, v in enumerate(of_one)},
        }
        for each, cost in zip(done, costs)
    ]
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
