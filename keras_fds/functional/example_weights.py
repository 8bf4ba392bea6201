"""Learned weights of the training loss: one for every class, every group or every example."""

import keras
import tensorflow as tf

from keras_fds.data import numbers, plain


def weighted(batch, outputs, values):
    """A batch `(x, y, sample_weight)` whose sample weights are multiplied by learned ones.

    Args:
        batch: A batch, `Numbered` where it must be.
        outputs: The model's outputs for it.
        values: `{"class_weight": [classes], "sample_weight": [groups]}`, or one of them; tensors,
            or what converts to them.
    """
    x, y, sample_weight = plain(batch)
    factors = [
        tf.gather(tf.convert_to_tensor(values[name]), of_batch)
        for name, of_batch in example_places(batch, values).items()
    ]
    if not factors:
        return x, y, sample_weight
    factor = factors[0] if len(factors) == 1 else factors[0] * factors[1]
    leaves = keras.tree.flatten(outputs)
    if keras.tree.is_nested(sample_weight):
        weights = keras.tree.map_structure(lambda w: _product(factor, w, None), sample_weight)
    elif len(leaves) > 1:
        weights = keras.tree.map_structure(lambda o: _product(factor, sample_weight, o), outputs)
    else:
        weights = _product(factor, sample_weight, leaves[0])
    return x, y, weights


def example_places(batch, names):
    """Where the weights of a batch's examples are among the learned ones, `{name: int64 [batch]}`.

    Args:
        batch: A batch, `Numbered` where it must be.
        names: Those learned; others than `"class_weight"` and `"sample_weight"` are left out.
    """
    found = {}
    if "class_weight" in names:
        found["class_weight"] = _labels(batch[1])
    if "sample_weight" in names:
        found["sample_weight"] = tf.cast(numbers(batch), "int64")
    return found


def _product(factor, sample_weight, output):
    """The factors of the examples times their weights, which may differ from step to step.

    A loss has one value for each part of an example, such as the steps of a sequence, and the
    weights of an example count for all of them.
    """
    rank = output.shape.rank - 1 if tf.is_tensor(output) and output.shape.rank else 1
    if sample_weight is None:
        return _widened(factor, rank)
    sample_weight = tf.cast(sample_weight, factor.dtype)
    if sample_weight.shape.rank == 1:
        return _widened(factor * sample_weight, rank)
    return _widened(factor, sample_weight.shape.rank) * sample_weight


def _widened(factor, rank):
    """The factors with more axes of length 1, as one rank needs them."""
    return tf.reshape(factor, [-1, *[1] * ((rank or 1) - 1)])


def _labels(y):
    """The class of each example of a batch."""
    if not tf.is_tensor(y) or y.shape.rank not in (1, 2) or y.dtype == tf.string:
        raise ValueError(
            "A learned 'class_weight' needs one tensor of labels in every batch, class numbers or "
            f"one-hot. Received: {y}"
        )
    if y.shape.rank == 2:
        y = tf.argmax(y, -1) if y.shape[1] != 1 else tf.squeeze(y, -1)
    return tf.cast(tf.round(y) if y.dtype.is_floating else y, "int64")


def number_of_classes(y, outputs):
    """How many classes there are, from the specs of a batch's labels and of the model's output."""
    one = not keras.tree.is_nested(y) and not keras.tree.is_nested(outputs)
    if one and y is not None and y.shape.rank == 2 and (y.shape[1] or 1) > 1:
        return int(y.shape[1])
    last = outputs.shape[-1] if one and y is not None and len(outputs.shape) == 2 else None
    if last is None:
        raise ValueError(
            "A learned 'class_weight' needs a model with one output, a number for every class, and "
            "one tensor of labels in every batch, class numbers or one-hot. "
            f"Received: y={y}, outputs={outputs}"
        )
    return max(2, int(last))
