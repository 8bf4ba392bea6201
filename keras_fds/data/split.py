"""Training and validation batches of a search."""

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data.arrays import (
    ArrayBatches,
    array_batches,
    arrays_of,
    num_examples,
    weights_of_classes,
)
from keras_fds.data.batches import Numbered, plain, unpack
from keras_fds.data.datasets import DatasetBatches


def not_finite_in(batches):
    """Which parts of some `ArrayBatches`, or of a dataset's first batch, hold NaN or infinities."""
    data = batches.data if isinstance(batches, ArrayBatches) else batches.first
    data = data if isinstance(batches, ArrayBatches) else unpack(data)
    parts = zip(("inputs", "targets", "sample weights"), plain(data))
    return [name for name, part in parts if not all(map(_is_finite, keras.tree.flatten(part)))]


def _is_finite(tensor):
    is_floating = tf.is_tensor(tensor) and tensor.dtype.is_floating
    return not is_floating or bool(tf.reduce_all(tf.math.is_finite(tensor)))


class SplitData:
    """Training and validation batches of each outer step.

    Args:
        train, validation: `ArrayBatches` or `DatasetBatches`.
        shuffle: Whether training arrays, or the batches of a `PyDataset`, are shuffled every
            pass; `"batch"` shuffles within batches of arrays only.
        resample: Whether each outer step redraws which examples of the arrays are held out.
    """

    def __init__(self, train, validation, shuffle, resample=False):
        self.train, self.validation, self.shuffle = train, validation, shuffle
        self.resample = resample
        self.spec = train.spec
        self.num_batches = train.num_batches

    def draw(self, generator, of_split):
        """`(train, validation)` batches for one outer step.

        One `numpy.random.Generator` shuffles, the other one draws what is held out.
        """
        train, validation = self.train, self.validation
        if self.resample:
            order = of_split.permutation(train.num_examples)
            number = len(validation.examples)
            train = train.subset(np.sort(order[number:]))
            validation = validation.subset(np.sort(order[:number]))
        shuffles = self.shuffle is not False
        return train.shuffled(generator if shuffles else None, self.shuffle), validation

    def timing_batches(self):
        """`(train, validation)` batches like those of `draw`; using them changes nothing."""
        return self.train.timing_batches(), self.validation.timing_batches()

    def replay(self, taken):
        """Takes these numbers of batches from one pass after the other of each dataset."""
        for batches, of_passes in zip((self.train, self.validation), taken):
            if isinstance(batches, DatasetBatches):
                batches.replay(of_passes)


_TRAINING = ("The training data", "steps_per_epoch")  # What messages call it and its length.


def split_data_of(
    train,
    validation_data,
    validation_split,
    *,
    batch_size,
    steps_per_epoch,
    class_weight,
    resample,
    validation_batch_size,
    validation_steps,
    shuffle,
    numbers=None,
):
    """The `SplitData` of a search, from `(x, y, sample_weight)` to train on.

    Without validation data its `validation` is `None`.

    The other arguments mean what they mean in `fit`; `resample` is its `resample_validation`.
    `numbers` are those of the examples of arrays, see `Numbered`.
    """
    if validation_data is not None:
        return SplitData(
            make_batches(
                train, batch_size, steps_per_epoch, _TRAINING, class_weight, numbers=numbers
            ),
            make_batches(
                unpack(validation_data),
                validation_batch_size,
                validation_steps,
                ("`validation_data`", "validation_steps"),
                continues=False,
            ),
            shuffle,
        )
    if not validation_split:
        batches = make_batches(train, batch_size, steps_per_epoch, _TRAINING, class_weight)
        return SplitData(batches, None, shuffle)
    if isinstance(train[0], (tf.data.Dataset, keras.utils.PyDataset)):
        raise ValueError("`validation_split` needs arrays. With a dataset pass `validation_data`.")
    held_out_data = arrays_of(train, None, _TRAINING)
    number = num_examples(held_out_data)
    first = int(np.floor(number * (1.0 - validation_split)))
    if not 0 < first < number:
        raise ValueError(
            f"`validation_split` leaves no examples to train or to validate on. Received: "
            f"validation_split={validation_split} of {number} examples"
        )
    weighed = held_out_data
    if class_weight is not None:  # Class weights weigh training examples only.
        weights = tf.constant(weights_of_classes(train[1], train[2], class_weight))
        weighed = (held_out_data[0], held_out_data[1], weights)
    weighed = _numbered(weighed, numbers)
    every = np.arange(number)
    return SplitData(
        array_batches(weighed, batch_size, steps_per_epoch, _TRAINING, every[:first]),
        array_batches(
            held_out_data,
            validation_batch_size,
            validation_steps,
            ("What is held out", "validation_steps"),
            every[first:],
        ),
        shuffle,
        resample=resample is not None,
    )


def _numbered(data, numbers):
    """Arrays `(x, y, sample_weight)` with the numbers of their examples, if there are any."""
    if numbers is None:
        return data
    x, y, sample_weight = data
    return x, y, Numbered(sample_weight, tf.constant(numbers, "int64"))


def make_batches(data, batch_size, steps, what, class_weight=None, continues=True, numbers=None):
    """Batches of `(x, y, sample_weight)`, where `x` is arrays or a dataset; see `DatasetBatches`.

    A `batch_size` of `None` is Keras's 32, or what `steps` makes it.
    """
    x, y, sample_weight = data
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        if y is not None or sample_weight is not None:
            raise ValueError(
                f"{what[0]} is a dataset, which holds its own `y` and `sample_weight`. Leave them "
                "out."
            )
        return DatasetBatches(x, steps, what, class_weight, continues)
    arrays = _numbered(arrays_of(data, class_weight, what), numbers)
    return array_batches(arrays, batch_size, steps, what)
