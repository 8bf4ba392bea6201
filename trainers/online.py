"""Learns greedily: one training of an experiment, in which the hyperparameters move.

    python -m trainers.search --config=configs/digits.py --config.method=hd --workdir=runs/hd

`config.method` is "hd", "rtho", or "marthe" with `config.tangent_decay`; every hyperparameter has
one value, whatever its `num_buckets`. The folder --workdir then holds config.json, schedules.json
(the values that the steps used), schedules.png, history.csv (one row per epoch), model.keras (the
trained model) and tensorboard/.
"""

from trainers import experiment, workdirs


def learn(config, workdir, overwrite=False, verbose="auto"):
    """Trains once and writes the results into a folder.

    Args:
        config, workdir, overwrite, verbose: As in `trainers.search.search`; nothing is resumed.

    Returns:
        The `keras.callbacks.History` of `keras_fds.fit_online`.

    Raises:
        ValueError: Before any training, when something in the config is unknown or does not fit,
            or the workdir is not empty or cannot be written to.

    Example:

    >>> config = configs.digits.get_config()
    >>> config.method = "hd"
    >>> learn(config, "runs/hd").history["val_loss"]
    """
    import keras

    import keras_fds
    from keras_fds import callbacks, files
    from trainers.stopwatch import Stopwatch

    experiment.check_config(config)
    workdir = workdirs.check_workdir(workdir, overwrite)
    stopwatch = Stopwatch(workdir, experiment.option(config, "seconds"))
    arrays = experiment.load_arrays(config, "train")
    keras.utils.set_random_seed(config.seed)
    model = experiment.make_model(config, arrays)
    history = keras_fds.fit_online(
        model,
        arrays.x,
        arrays.y,
        batch_size=config.batch_size,
        **experiment.validation_of(config),
        validation_batch_size=config.validation_batch_size,
        verbose=verbose,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_begin=lambda logs: workdirs.begin_workdir(workdir, config)
            ),
            stopwatch,
            keras.callbacks.CSVLogger(workdir / "history.csv"),
            keras.callbacks.TensorBoard(workdir / "tensorboard"),
        ],
        seed=config.seed,
        **experiment.online(config),
    )
    schedules = model.optimizer.schedules
    keras_fds.save_schedules(workdir / "schedules.json", schedules)
    with files.replacement(workdir / "schedules.png") as path:
        callbacks.draw_schedules([schedules]).savefig(path, format="png", dpi=150)
    with files.replacement(workdir / "model.keras") as path:
        model.save(path)
    return history


def conclusion(workdir):
    """The message about a finished training; `workdir` is a `pathlib.Path`."""
    import keras_fds

    *_, last = workdirs.read_history(workdir)
    found = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if name != "epoch")
    path = workdir / "schedules.json"
    schedules = keras_fds.load_schedules(path)
    horizon = next(iter(schedules.values())).horizon
    train = experiment.trainer_command(
        "trainers.train", f"--schedules={path}", f"--workdir={workdir}-train"
    )
    return (
        f"\nAfter {last['epoch'] + 1:.0f} epochs, {horizon} steps: {found}.\n"
        f"Picture of the values that the steps used: {workdir / 'schedules.png'}\n"
        f"To train with them, type:\n  {train}"
    )
