"""Trains from fresh weights with schedules that a search learned, and tests the result.

    python -m trainers.train --config=configs/digits.py --schedules=runs/digits/schedules.json \
        --workdir=runs/digits-train --config.train_epochs=50 --config.train_seeds=3

Trains on the whole training split with stock `model.fit`, the schedules stretched to
`config.train_epochs` epochs, and evaluates on the test split once, at the end. The folder --workdir
then holds config.json, schedules.json (stretched), schedules.png, history.csv (one row per epoch),
model.keras (the first seed's), test.json, tensorboard/, and report.html, which also shows the
search.
"""

import pathlib

from absl import flags

from trainers import experiment, report, workdirs

REQUIRED = ("config", "schedules", "workdir")
_SCHEDULES = flags.DEFINE_string("schedules", None, "The schedules.json that a search wrote.")
flags.adopt_module_key_flags(experiment)


def train(config, schedules, workdir, overwrite=False, verbose="auto"):
    """Trains and tests with one seed or several, and writes the results into a folder.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`; seeds are `config.seed` and
            the `config.train_seeds - 1` numbers after it.
        schedules: Path of a schedule file; it decides the numbers of buckets.
        workdir, overwrite, verbose: As in `trainers.search.search`.

    Returns:
        The mean test metrics `"loss"` and `"accuracy"`; `"accuracy_interval"`, the 95% confidence
        interval of the mean (`None` for one seed); `"seeds"`, a list of the metrics of each.

    Raises:
        ValueError: Before any training, when the schedule file is missing, corrupt or of other
            hyperparameters than the config, and all that `trainers.search.search` raises.

    Example:

    >>> train(configs.digits.get_config(), "runs/digits/schedules.json", "runs/train")["accuracy"]
    """
    import keras

    import keras_fds
    from keras_fds import callbacks

    experiment.check_config(config)
    learned = keras_fds.load_schedules(schedules)
    experiment.make_optimizer(config, learned)
    workdir = workdirs.check_workdir(workdir, overwrite)
    if workdir.resolve() == pathlib.Path(schedules).resolve().parent:
        raise ValueError(
            "--workdir must not be the folder that holds --schedules. Choose another one. "
            f"Received: workdir={workdir}"
        )
    arrays = experiment.load_arrays(config, "train")
    test = experiment.load_arrays(config, "test")
    weights = experiment.example_weights(config, learned, len(arrays.x))
    horizon = -(-len(arrays.x) // config.batch_size) * config.train_epochs
    stretched = {name: schedule.stretched(horizon) for name, schedule in learned.items()}
    results = []
    for seed in range(config.seed, config.seed + config.train_seeds):
        keras.utils.set_random_seed(seed)
        model = experiment.make_model(config, arrays, learned)
        if model.built:  # Slots that start from the weights are zero where `fit` builds them.
            model.optimizer.build(model.trainable_variables)
        if not results:
            workdirs.begin_workdir(workdir, config)
            keras_fds.save_schedules(workdir / "schedules.json", stretched)
            callbacks.draw_schedules([stretched]).savefig(workdir / "schedules.png", dpi=150)
        model.fit(
            arrays.x,
            arrays.y,
            sample_weight=weights,
            batch_size=config.batch_size,
            epochs=config.train_epochs,
            verbose=verbose,
            callbacks=[
                keras.callbacks.CSVLogger(workdir / "history.csv", append=True),
                keras.callbacks.TensorBoard(workdir / "tensorboard" / f"seed_{seed}"),
            ],
        )
        metrics = model.evaluate(test.x, test.y, batch_size=500, verbose=0, return_dict=True)
        results.append({"seed": seed, **metrics})
        if len(results) == 1:
            model.save(workdir / "model.keras")
    summary = experiment.summarise(results)
    workdirs.write_json(workdir / "test.json", summary)
    return summary


def write_report(config, schedules, summary, workdir):
    """Writes `report.html`; arguments as above, `summary` is what `train` returned."""
    import keras_fds

    workdir = pathlib.Path(workdir)
    neighbours = workdirs.read_history(pathlib.Path(schedules).parent)
    command = experiment.trainer_command(
        "trainers.train", f"--schedules={schedules}", f"--workdir={workdir}"
    )
    page = report.training_page(
        title=f"Training: {experiment.described(config)}",
        lead=f"Test accuracy {summary['accuracy']:.2%}, loss {summary['loss']:.4f}.",
        summary=summary,
        rows=workdirs.read_history(workdir),
        schedules=keras_fds.load_schedules(workdir / "schedules.json"),
        search_rows=[row for row in neighbours if "outer_step" in row],
        origin=report.describe_origin(command, config.seed),
    )
    workdirs.write_text(workdir / "report.html", page)


def conclusion(summary, workdir):
    """The message about a finished training."""
    text = f"\nTest accuracy {summary['accuracy']:.2%}, loss {summary['loss']:.4f}"
    if summary["accuracy_interval"]:
        low, high = summary["accuracy_interval"]
        each = ", ".join(f"{result['accuracy']:.2%}" for result in summary["seeds"])
        text += f": means of {len(summary['seeds'])} seeds ({each}).\n"
        text += f"95% interval of the mean accuracy: {low:.2%} to {high:.2%}"
    return f"{text}.\nThe model and all other results are in {workdir}."


def main():
    """The program."""
    config, workdir = experiment.CONFIG.value, experiment.WORKDIR.value
    summary = train(config, _SCHEDULES.value, workdir, experiment.OVERWRITE.value)
    write_report(config, _SCHEDULES.value, summary, workdir)
    print(conclusion(summary, workdir))


if __name__ == "__main__":
    experiment.run(main, required=REQUIRED)
