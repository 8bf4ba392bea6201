"""The folders for the results of programs, and what a search needs there to be resumed."""

import contextlib
import csv
import json
import math
import pathlib

# Fields that a search does not depend on, or that may change when it is resumed.
_NOT_OF_THE_SEARCH = (
    "budget",
    "outer_steps",
    "train_epochs",
    "train_seeds",
    "cache_dir",
    "methods",
    "seconds",
)
# Fields that configs of older versions lack, and what is then meant.
OPTIONAL_FIELDS = {
    "normalisation": "channel",
    "augmentation": "none",
    "initializer": "glorot_normal",
    "cache_dir": None,
    "task": None,
    "method": "search",
    "tangent_decay": 0.99,
    "outer_optimizer": {"name": "keras.optimizers.Adam", "learning_rate": 0.03},
    "space": "decay",
    "hyperband": False,
    "storage": None,
    "dtype_policy": "float32",
    "seconds": None,
}
CHECKPOINTS = "checkpoints"
JOURNAL = "trials.log"  # Of a black box.
SECONDS = "seconds.json"
_RESULTS = (
    "config.json",
    "schedules.json",
    "history.csv",
    "schedules.png",
    "model.keras",
    "test.json",
    "schedules.py",
    "report.html",
    SECONDS,
)


def check_workdir(workdir, overwrite=False):
    """Makes the folder for the results; nothing in it changes yet.

    Raises:
        ValueError: It cannot be written to, or it is not empty and `overwrite` is not set.
    """
    from keras_fds import files

    path = files.writable_directory(workdir, "workdir")
    if not (overwrite or _is_empty(path)):
        raise ValueError(
            "The workdir is not empty. Choose another one, or pass --overwrite to remove older "
            f"results from it and nothing else. Received: workdir={workdir}"
        )
    return path


def _is_empty(path):
    """Whether a folder holds only folders and files that a kill left half written."""
    return all(each.is_dir() or ".partial" in each.name for each in path.rglob("*"))


def holds_search(workdir, config):
    """Whether a folder holds a search of a config, finished or not, that can be resumed.

    Raises:
        ValueError: It holds a search of another config, which differs in more than `budget`,
            `outer_steps` and fields that only `trainers.train` uses.
    """
    path = pathlib.Path(workdir)
    if not (path / CHECKPOINTS).is_dir() or not (path / "config.json").exists():
        return False
    try:
        before = _of_the_search(json.loads((path / "config.json").read_text()))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path / 'config.json'} is damaged, so it is unknown whether the workdir holds this "
            "search. Choose another workdir, or pass --overwrite to remove older "
            f"results. Reason: {error}"
        ) from error
    now = search_config(config)
    names = before.keys() | now.keys()
    differing = sorted(name for name in names if before.get(name) != now.get(name))
    if differing:
        raise ValueError(
            "The workdir holds a search of another config, which differs in "
            + ", ".join(
                f"{name} ({before.get(name, OPTIONAL_FIELDS.get(name))!r} there)"
                for name in differing
            )
            + ". Choose another workdir, resume with that config, or pass --overwrite to remove "
            f"older results. Received: workdir={workdir}"
        )
    return True


def search_config(config):
    """The fields that a search depends on, as JSON can hold them.

    Optional ones are among them only where they are not what is meant without them, so searches of
    older versions can be resumed.
    """
    return _of_the_search(fields_of(config))


def search_config_of(workdir):
    """The same of the config that a folder holds."""
    return _of_the_search(json.loads((workdir / "config.json").read_text()))


def _of_the_search(fields):
    return {
        name: value
        for name, value in fields.items()
        if name not in _NOT_OF_THE_SEARCH
        if name not in OPTIONAL_FIELDS or value != OPTIONAL_FIELDS[name]
    }


def begin_workdir(workdir, config):
    """Removes the results of older runs of these programs, and writes config.json."""
    for name in _RESULTS:
        (workdir / name).unlink(missing_ok=True)
    for path in (workdir / CHECKPOINTS).glob("outer_step_*.npz*"):
        path.unlink()
    for path in (workdir / "tensorboard").rglob("events.out.tfevents.*"):
        path.unlink()
    write_config(workdir, config)


def begin_search(workdir, config, going_on):
    """`begin_workdir` for a search; keeps the results of a search that is resumed."""
    (workdir / CHECKPOINTS).mkdir(exist_ok=True)
    if going_on:
        write_config(workdir, config)
    else:
        begin_workdir(workdir, config)


def write_config(workdir, config):
    """Writes config.json."""
    write_json(workdir / "config.json", fields_of(config))


def fields_of(config):
    """The fields of a config as JSON can hold them, without how this machine compiles it."""
    fields = json.loads(json.dumps(_finite(config.to_dict())))
    fields.pop("jit_compile", None)
    return fields


def write_text(path, text):
    """Writes a text file."""
    from keras_fds import files

    with files.replacement(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path, content):
    """Writes a readable JSON file; NaN and infinities become null."""
    write_text(path, json.dumps(_finite(content), indent=2) + "\n")


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_history(workdir):
    """The rows of history.csv, `[{column: number}, …]`; none when there is no such file.

    A row lacks columns that are empty in it or, as Keras writes them, NA.
    """
    with contextlib.suppress(FileNotFoundError), open(workdir / "history.csv", newline="") as file:
        return [
            {column: float(cell) for column, cell in row.items() if cell not in ("", "NA", None)}
            for row in csv.DictReader(file)
        ]
    return []


def best_row(rows):
    """The row of a search's history that the outer rule found best, or `None`."""
    return next((row for row in reversed(rows) if row.get("best") == 1), None)


def verdict_on(rows):
    """Which outer step of a search's history is the best, a sentence or two."""
    best = best_row(rows)
    if best is None:
        return f"{len(rows)} outer steps are finished, none with a finite validation loss."
    text = (
        f"The best of {len(rows)} outer steps was number {best['outer_step']:.0f}: validation "
        f"loss {best['val_loss']:.4f}, accuracy {best['val_accuracy']:.1%}."
    )
    lower = [f"{row['outer_step']:.0f}" for row in rows if _is_lower(row, best)]
    if lower:
        text += (
            f" Number{'s' * (len(lower) > 1)} {' and '.join(lower)} had a lower loss, but from "
            "what all outer steps tell, this one is better."
        )
    return text


def _is_lower(row, best):
    """Whether an accepted outer step over the best one's horizon has a lower validation loss."""
    comparable = row["accepted"] == 1 and row["horizon"] == best["horizon"]
    return comparable and row.get("val_loss", math.nan) < best["val_loss"]


def what_is_there(workdir):
    """What a folder holds after an interrupt, as a message."""
    rows = len(read_history(workdir))
    if not rows:
        return "Interrupted before anything was finished."
    names = ", ".join(name for name in _RESULTS if (workdir / name).exists())
    names = names.replace("history.csv", f"history.csv ({rows} row{'s' if rows > 1 else ''})")
    text = f"Interrupted. {workdir} holds what is finished: {names}."
    if (workdir / CHECKPOINTS).is_dir() or (workdir / JOURNAL).exists():
        text += "\nTo resume, start the same command again, without --overwrite."
    return text
