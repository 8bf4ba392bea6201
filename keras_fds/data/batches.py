"""A batch `(x, y, sample_weight)`, and the number of each of its examples."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Numbered(NamedTuple):
    """What stands for a batch's sample weights where each example has a number.

    Learned sample weights belong to these numbers. All that gathers, shuffles, joins or replays
    batches carries them along.
    """

    sample_weight: Any
    number: Any  # `[batch]`, the example's own number or its group's.


def unpack(data):
    """`(x, y, sample_weight)` of a dataset's element `x` or `(x[, y[, sample_weight[, number]]])`.

    With a number, the sample weights are `Numbered`.
    """
    if not isinstance(data, tuple) or len(data) != 4:
        return keras.utils.unpack_x_y_sample_weight(data)
    x, y, sample_weight, number = data
    if isinstance(sample_weight, tf.NoneTensorSpec):
        sample_weight = None
    return x, y, Numbered(sample_weight, number)


def pack(x, y, sample_weight):
    """The inverse of `unpack`."""
    if isinstance(sample_weight, Numbered):
        return x, y, *sample_weight
    return keras.utils.pack_x_y_sample_weight(x, y, sample_weight)


def plain(batch):
    """The batch as Keras takes it: without the numbers of its examples."""
    x, y, sample_weight = batch
    return x, y, sample_weight.sample_weight if _is_numbered(batch) else sample_weight


def numbers(batch):
    """The number of each example, or `None`."""
    return batch[2].number if _is_numbered(batch) else None


def check_below(places, limits, what, length=None):
    """Raises a `ValueError` when an example has no learned weight, or several.

    Args:
        places: `{name: int64 [examples]}`, where their weights are among the learned ones.
        limits: `{name: number of learned weights}`.
        what: What messages call the data.
        length: The number of examples. Defaults to `None`, as many as there are places.
    """
    for name, of_examples in places.items():
        of_examples = np.asarray(of_examples)
        wrong = of_examples[(of_examples < 0) | (of_examples >= limits[name])]
        kind = "label" if name == "class_weight" else "number of an example or group"
        if length is not None and of_examples.shape != (length,):
            raise ValueError(
                f"{what} must have one {kind} for every example of a batch. Received: an array of "
                f"shape {of_examples.shape} for {length} examples"
            )
        if wrong.size:
            raise ValueError(
                f"{what} must have each {kind} from 0 to {limits[name] - 1}: {name!r} is learned "
                f"with {limits[name]} values. Received: {wrong[0]}"
            )


def _is_numbered(batch):
    return isinstance(batch[2], Numbered)
