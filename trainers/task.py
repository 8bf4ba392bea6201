"""A task of one's own: a Python file that loads data and makes a model.

    python -m trainers.search --config=configs/digits.py --config.task=my_task.py \
        --workdir=runs/mine

The file, or a module by its dotted name, has two functions. `load_data()` returns
`((x, y), (x_test, y_test))`, arrays, or three pairs, the middle one for validation; otherwise a
part of the first one is held out. Labels are whole numbers. With `config.data_dir` it is called
with that path. `make_model()` returns an uncompiled Keras model from a batch of `x` to logits, with
new weights. Two others may be there: `make_loss()`, in place of the sparse cross-entropy of logits,
and `groups()`, the group of every training example, for one learned weight a group. Everything else
is in the config, whose `dataset` and `network` then mean nothing.
"""

import functools
import importlib
import importlib.util
import pathlib
import traceback

import numpy as np

FUNCTIONS = ("load_data", "make_model")


@functools.cache
def load(path):
    """The module of a task.

    Args:
        path: Of its file, or the dotted name of a module, a string.

    Raises:
        ValueError: There is no such file, it cannot be run, or it lacks a function.
    """
    if path.endswith(".py") and not pathlib.Path(path).is_file():
        raise ValueError(f"There is no such file. Received: task={path!r}")
    try:
        if path.endswith(".py"):
            spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(path)
    except (Exception, SystemExit) as error:
        raise _failed(f"The task {path} cannot be loaded", error) from error
    missing = [name for name in FUNCTIONS if not callable(getattr(module, name, None))]
    if missing:
        raise ValueError(f"The task {path} lacks {' and '.join(f'{name}()' for name in missing)}.")
    return module


def load_arrays(path, split, data_dir=None):
    """One split of a task's data, a `trainers.data.ArrayDataset`, or `None` without such a split.

    Args:
        path: See `load`.
        split: `"train"`, `"validation"` or `"test"`.
        data_dir: What `load_data` is called with. Defaults to `None`: it is called with nothing.

    Raises:
        ValueError: The file does not fit, or its data do not.
    """
    from trainers.data import ArrayDataset

    found = _data(path, data_dir)
    try:
        names = {2: ("train", "test"), 3: ("train", "validation", "test")}[len(found)]
        splits = {n: (np.asarray(x), np.asarray(y)) for n, (x, y) in zip(names, found)}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_data() of {path} must return ((x, y), (x_test, y_test)), arrays, or three such "
            f"pairs. {error}"
        ) from error
    for each, labels in splits.values():
        if not each.ndim or not labels.ndim or len(each) != len(labels) or not len(each):
            raise ValueError(
                f"load_data() of {path} must return as many labels as examples, arrays. Received: "
                f"shapes {each.shape} and {labels.shape}"
            )
        if labels.dtype.kind not in "iu" or each.dtype.kind not in "biuf":
            raise ValueError(
                f"load_data() of {path} must return numbers, and labels that are whole numbers. "
                f"Received: types {each.dtype} and {labels.dtype}"
            )
        if labels.min() < 0:
            raise ValueError(
                f"load_data() of {path} must return labels from 0. Received: {labels.min()}"
            )
    shapes = {name: each.shape[1:] for name, (each, _) in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"load_data() of {path} must return examples of one shape. Received: {shapes}"
        )
    if split not in splits:
        return None
    x, y = splits[split]
    num_classes = 1 + int(max(labels.max() for _, labels in splits.values()))
    return ArrayDataset(x, y.astype("int64"), num_classes, black=None)


@functools.lru_cache(maxsize=1)
def _data(path, data_dir):
    return _call(path, "load_data", *([] if data_dir is None else [data_dir]))


def make_model(path):
    """A new model of the task."""
    import keras

    model = _call(path, "make_model")
    if not isinstance(model, keras.Model):
        raise ValueError(f"make_model() of {path} must return a keras.Model. Received: {model!r}")
    return model


def make_loss(path):
    """A new loss of the task, or `None` where it leaves the choice."""
    return _call(path, "make_loss") if hasattr(load(path), "make_loss") else None


def groups(path):
    """The group of every training example of the task, or `None`: each has a weight of its own."""
    if not hasattr(load(path), "groups"):
        return None
    found = np.asarray(_call(path, "groups"))
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"groups() of {path} must return the group of every training example, whole numbers. "
            f"Received: an array of shape {found.shape} and type {found.dtype}"
        )
    return found


def _call(path, name, *arguments):
    """What a function of the task returns; its errors are told with its own lines of code."""
    try:
        return getattr(load(path), name)(*arguments)
    except (Exception, SystemExit) as error:
        raise _failed(f"{name}() of {path} failed", error) from error


def _failed(what, error):
    """A `ValueError` that tells where in the task's code an error was raised."""
    lines = traceback.format_exception(error.with_traceback(error.__traceback__.tb_next))
    return ValueError(f"{what}:\n{''.join(lines).rstrip()}")
