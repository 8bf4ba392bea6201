"""Images and labels in NumPy files: `train_x.npy`, `train_y.npy` and so on, or one `.npz` file."""

import pathlib
import re
import zipfile

import numpy as np

_NAME = re.compile(r"(?P<split>\w+)_(?P<kind>[xy])|(?P<kind2>[xy])_(?P<split2>\w+)")


def read(path):
    """Reads all splits.

    Args:
        path: A folder with files such as `train_x.npy` and `train_y.npy`, or an `.npz` file with
            arrays of these names; `x_train` and `y_train` mean the same.

    Returns:
        `{split: (images, labels)}` and the number of classes. Images have the shape [examples,
        height, width, channels], labels are `int64` from 0.

    Raises:
        ValueError: Files are missing or cannot be read, or arrays do not fit together.

    Example:

    >>> splits, num_classes = read("pets.npz")
    >>> splits["train"][0].shape, num_classes
    ((200, 32, 32, 3), 2)
    """
    path = pathlib.Path(path).expanduser()
    found = {}
    for name, array in _arrays(path).items():
        if match := _NAME.fullmatch(name):
            split = match["split"] or match["split2"]
            found.setdefault(split, {})[match["kind"] or match["kind2"]] = array
    for split in {"train": None, **found}:
        for kind in "xy":
            if kind not in found.get(split, {}):
                raise ValueError(
                    f"The array {split}_{kind} is missing. Expected train_x, train_y, and test_x, "
                    f"test_y for tests, as .npy files or in one .npz file. Received: {_given(path)}"
                )
    splits = {split: _checked(split, **found[split], path=path) for split in sorted(found)}
    _check_alike(splits, path)
    return splits, int(splits["train"][1].max()) + 1


def _given(path):
    return f"data_dir={str(path)!r}"


def _arrays(path):
    """`{name: array}` of a folder or of an .npz file."""
    if not path.exists():
        raise ValueError(f"There are no such files. Received: {_given(path)}")
    paths = sorted(path.glob("*.npy")) if path.is_dir() else [path]
    arrays = {}
    for each in paths:
        try:
            content = np.load(each, allow_pickle=False)
            if isinstance(content, np.ndarray):
                arrays[each.stem] = content
            else:
                with content:
                    arrays.update(content)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{each} cannot be read as a NumPy file of numbers. Reason: {error}"
            ) from error
    return arrays


def _checked(split, x, y, path):
    """Images and labels in their final shapes, or a ValueError."""
    if x.ndim == 3:
        x = x[..., np.newaxis]
    if x.ndim != 4 or not x.size or not (x.dtype == np.uint8 or x.dtype.kind == "f"):
        raise ValueError(
            f"{split}_x must be uint8 or float images of shape [examples, height, width, channels] "
            f"or [examples, height, width]. Received: shape {x.shape}, {x.dtype}, {_given(path)}"
        )
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        wrong = np.flatnonzero(~np.isfinite(x).all(axis=(1, 2, 3)))
        raise ValueError(
            f"{split}_x has values that are NaN or infinite, in {len(wrong)} images, the first of "
            f"them number {wrong[0]}. Received: {_given(path)}"
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(
            f"{split}_y must be whole numbers, one per image of {split}_x ({len(x)}). "
            f"Received: shape {y.shape}, {y.dtype}, {_given(path)}"
        )
    if y.min() < 0:
        raise ValueError(f"{split}_y has labels below 0. Received: {y.min()}, {_given(path)}")
    return x, y.astype(np.int64)


def _check_alike(splits, path):
    images, labels = splits["train"]
    present = np.unique(labels)
    num_classes = max(len(present), 2)
    missing = np.setdiff1d(np.arange(num_classes), present)
    if len(missing):
        raise ValueError(
            "train_y must have every label from 0 to the number of classes - 1, and two classes or "
            f"more. Missing: {missing[0]}; the greatest is {present[-1]}. Received: {_given(path)}"
        )
    for split, (x, y) in splits.items():
        if x.shape[1:] != images.shape[1:] or x.dtype != images.dtype:
            raise ValueError(
                f"{split}_x and train_x must be alike. Received: images of {x.shape[1:]}, {x.dtype}"
                f" and of {images.shape[1:]}, {images.dtype}, {_given(path)}"
            )
        if y.max() >= num_classes:
            raise ValueError(
                f"{split}_y has labels that train_y lacks. Received: {y.max()}, {_given(path)}"
            )
