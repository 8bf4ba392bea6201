"""Learns the schedules of an experiment.

    python -m trainers.search --config=configs/digits.py --workdir=runs/digits

Any field of the config can be changed: --config.budget=4. The folder --workdir then holds
config.json, schedules.json and model.keras (of the best outer step by the outer rule), history.csv
(one row per outer step), seconds.json (when each ended), schedules.png, tensorboard/ and
checkpoints/; schedules.py, which makes the optimizer with its schedules in programs without
keras_fds; and report.html. `config.seconds` ends learning at the first outer step after so long.

With --config.method=hd (or rtho, marthe) there is no search: see `trainers.online`. With
--config.method=tpe (or random, gp, cma_es) Optuna searches: see `trainers.black_box`.

To resume a search that was interrupted or killed, start the same command again. It ends as if it
had not been interrupted. A finished search continues with a greater --config.budget.

With --strategy=mirrored all devices of the machine share the work, with --strategy=multi_worker the
workers that the environment variable TF_CONFIG names: start the same command on all of them, with a
folder --workdir that all see. The first worker writes the files. With --parallel=outer_steps every
worker makes outer steps of its own.
"""

import contextlib
import json
import pathlib

from absl import flags

from trainers import black_box, devices, experiment, online, report, strategies, workdirs

CHECK = flags.DEFINE_bool("check", False, "Compare hypergradients with finite differences first.")
CHECKPOINT_MINUTES = flags.DEFINE_float(
    "checkpoint_minutes",
    10.0,
    "Between checkpoints within an outer step, where it can be resumed.",
    0.0,
)
flags.adopt_module_key_flags(experiment)
flags.adopt_module_key_flags(strategies)


def search(
    config,
    workdir,
    overwrite=False,
    verbose="auto",
    check=False,
    checkpoint_minutes=10.0,
    strategy=None,
    parallel=None,
    pictures=True,
):
    """Learns schedules and writes the results into a folder.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`.
        workdir: Folder, made when it does not exist.
        overwrite: Whether to replace older results there. Defaults to `False`: a search of this
            config is resumed, anything else in the folder is refused.
        verbose: As in `model.fit`. Defaults to `"auto"`.
        check: Whether to compare hypergradients with finite differences first. Defaults to `False`.
        checkpoint_minutes: From one checkpoint to the next within an outer step;
            there is one at the end of every outer step. Defaults to `10.0`.
        pictures: Whether to draw and to write TensorBoard's files after every outer step, which
            takes longer than a short training. Defaults to `True`; otherwise the schedules are
            drawn once, at the end.
        strategy: The `tf.distribute.Strategy` to train under. Defaults to `None`, none.
        parallel: As in `keras_fds.fit`. Defaults to `None`.

    Returns:
        The `keras.callbacks.History` of `keras_fds.fit`.

    Raises:
        ValueError: Before any training, when something in the config is unknown or does not fit,
            the workdir holds anything but a search of this config or cannot be written to,
            or the check fails.

    Example:

    >>> search(configs.digits.get_config(), "runs/digits").history["val_loss"]
    """
    import keras

    import keras_fds
    from keras_fds import callbacks, files
    from trainers.in_time import InTime
    from trainers.stopwatch import Stopwatch, read_seconds

    experiment.check_config(config)
    going_on = not overwrite and workdirs.holds_search(workdir, config)
    is_chief = strategies.is_chief(strategy)
    workdir = pathlib.Path(workdir)
    if is_chief:
        workdirs.check_workdir(workdir, overwrite or going_on)
    stopwatch = Stopwatch(workdir, experiment.option(config, "seconds"))
    if going_on:
        stopwatch.earlier = max(read_seconds(workdir), default=0.0)
    arrays = experiment.load_arrays(config, "train")
    if check:
        keras.utils.set_random_seed(config.seed)
        experiment.check_hypergradients(config, arrays)
    keras.utils.set_random_seed(config.seed)
    with strategies.scope(strategy):
        model = experiment.make_model(config, arrays)
    outer = model.optimizer.outer
    if isinstance(outer, InTime):  # It ends by itself, with its answer.
        outer.clock, stopwatch.limit = stopwatch.elapsed, None
        if not strategies.is_one_process(strategy):
            raise ValueError(
                "The outer rule InTime goes by a clock, and each worker has its own. Leave "
                "--strategy=multi_worker out, or take another rule."
            )

    def begin(logs):
        if is_chief:
            workdirs.begin_search(workdir, config, going_on)
        strategies.wait_for_all(strategy)  # No worker must find older results.

    checkpoint = callbacks.Checkpoint(
        workdir / workdirs.CHECKPOINTS,
        workdirs.search_config(config),
        minutes=checkpoint_minutes,
    )
    board = callbacks.TensorBoard(workdir / "tensorboard", config.to_dict())
    history = keras_fds.fit(
        model,
        arrays.x,
        arrays.y,
        batch_size=config.batch_size,
        **experiment.lengths(config),
        **experiment.validation_of(config),
        validation_batch_size=config.validation_batch_size,
        validation_training=config.validation_training,
        differentiation=experiment.differentiation(config),
        reverse_memory=config.reverse_memory,
        parallel=parallel,
        verbose=verbose,
        callbacks=[
            keras.callbacks.LambdaCallback(on_train_begin=begin),
            *([stopwatch] if is_chief else []),  # Its decision to end holds for all.
            checkpoint,
            callbacks.ScheduleExport(workdir, every_picture=pictures),
            *([board] if pictures else []),
        ],
        seed=config.seed,
    )
    if is_chief:
        with files.replacement(workdir / "model.keras") as path:
            model.save(path)
    return history


def learn(config, workdir, overwrite=False, verbose="auto", **options):
    """Learns by the config's `method`, and writes the results into a folder.

    Args:
        config, workdir, overwrite, verbose: As in `search`, which `options` are for.

    Returns:
        The function that gives the message about the result, from the folder.

    Raises:
        ValueError: See `search`, `trainers.online.learn` and `trainers.black_box.search`.
    """
    experiment.check_config(config)
    distributed = options.get("strategy") is not None or options.get("parallel") is not None
    if distributed and experiment.option(config, "method") != "search":
        raise ValueError(
            "--strategy and --parallel are for method='search'. Leave them out. "
            f"Received: method={config.method!r}"
        )
    if experiment.is_online(config):
        online.learn(config, workdir, overwrite, verbose)
        return online.conclusion
    if experiment.is_black_box(config):
        tell = print if verbose else lambda line: None
        black_box.search(config, workdir, overwrite, tell)
        return black_box.conclusion
    search(config, workdir, overwrite, verbose, **options)
    return conclusion


def write_report(config, workdir):
    """Writes `schedules.py` and `report.html` from the results in a search's folder.

    If numbers of the model are learned there is no `schedules.py`: no optimizer has them.
    """
    import keras_fds

    rows = workdirs.read_history(workdir)
    if not rows:
        return
    optimizer = experiment.make_optimizer(config)
    if (workdir / "schedules.json").exists():
        schedules = keras_fds.load_schedules(workdir / "schedules.json")
        if not any("." in name or each.values.ndim > 1 for name, each in schedules.items()):
            code = keras_fds.export.python_snippet(schedules, optimizer.optimizer)
            workdirs.write_text(workdir / "schedules.py", code)
    command = experiment.trainer_command("trainers.search", f"--workdir={workdir}")
    page = report.search_page(
        title=f"Search: {experiment.described(config)}",
        lead=workdirs.verdict_on(rows),
        rows=rows,
        origin=report.describe_origin(command, config.seed),
        interpolations={h.name: h.interpolation for h in optimizer.hyperparameters},
    )
    workdirs.write_text(workdir / "report.html", page)


def conclusion(workdir):
    """The message about a finished search; `workdir` is a `pathlib.Path`."""
    import keras_fds

    schedules = workdir / "schedules.json"
    rows = workdirs.read_history(workdir)
    best = workdirs.best_row(rows)
    train = experiment.trainer_command(
        "trainers.train", f"--schedules={schedules}", f"--workdir={workdir}-train"
    )
    tensorboard = experiment.command("tensorboard", f"--logdir={workdir / 'tensorboard'}")
    return (
        f"\n{workdirs.verdict_on(rows)}\n"
        f"Its schedules, over a horizon of {best['horizon']:.0f} inner steps:\n\n"
        f"{experiment.table(keras_fds.load_schedules(schedules))}\n\n"
        f"Picture of all outer steps' schedules: {workdir / 'schedules.png'}\n"
        f"The whole report: {workdir / 'report.html'}\n"
        f"To train with them, type:\n  {train}\n"
        f"To see the search in TensorBoard, type:\n  {tensorboard}"
    )


def _holds_results_of(config, workdir):
    """Whether a folder's results are of this config. A refused search keeps older ones."""
    with contextlib.suppress(OSError, ValueError):
        written = json.loads((workdir / "config.json").read_text())
        return written == workdirs.fields_of(config)
    return False


def main():
    """The program."""
    workdir = pathlib.Path(experiment.WORKDIR.value)
    config = experiment.CONFIG.value
    strategy = strategies.make(strategies.STRATEGY.value, strategies.WORKER_TIMEOUT.value)
    shared = strategy is not None and strategy.num_replicas_in_sync > 1
    shared = shared and strategies.PARALLEL.value is None
    if shared and devices.JIT_COMPILE.value == "auto":
        with config.unlocked():
            config.jit_compile = False  # XLA has no transfers between replicas.
    try:
        experiment.check_config(config)
        if config.outer_steps is not None and config.budget is not None:
            print(
                f"The search makes outer_steps={config.outer_steps}; its budget of "
                f"{config.budget:g} plain trainings does not count."
            )
        tell = learn(
            config,
            workdir,
            overwrite=experiment.OVERWRITE.value,
            check=CHECK.value,
            checkpoint_minutes=CHECKPOINT_MINUTES.value,
            strategy=strategy,
            parallel=strategies.PARALLEL.value,
        )
    except ImportError as error:
        raise ValueError(f'{error}. Type: pip install "keras-fds[baselines]"') from error
    except BaseException:
        searches = not (experiment.is_online(config) or experiment.is_black_box(config))
        if searches and strategies.is_chief(strategy) and _holds_results_of(config, workdir):
            with contextlib.suppress(OSError):  # The first error is the one to report.
                write_report(config, workdir)
        raise
    if not strategies.is_chief(strategy):
        return
    if tell is conclusion:
        write_report(config, workdir)
    if not (workdir / "schedules.json").exists():
        raise SystemExit(
            "No outer step had a finite validation loss, so nothing is learned. Start from smaller "
            "values, or clip gradients (`clipvalue`, `global_clipnorm`)."
        )
    print(tell(workdir))


if __name__ == "__main__":
    experiment.run(main)
