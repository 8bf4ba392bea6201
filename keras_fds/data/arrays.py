"""Batches of arrays in memory, gathered on the device."""

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data.batches import check_below
from keras_fds.data.sources import ArraySource, map_structure
from keras_fds.numbers import number


class ArrayBatches:
    """Batches of in-memory arrays.

    Args:
        data: `(x, y, sample_weight)`, structures of arrays of equal length; `None` allowed.
        batch_size: Examples per batch; the last batch may be smaller.
        examples: Positions to use, an int array. Defaults to all.
        generator: A `numpy.random.Generator` that shuffles every pass. `None` keeps the order.
        steps: Number of batches used in a pass. Defaults to `None`, all.
        shuffle: `"batch"` shuffles within batches only. Defaults to `True`.

    Attributes:
        num_batches: How many batches are used.
        pass_length: Number of batches in a pass over the arrays.
    """

    bytes_to_keep = 0  # Replaying a batch takes no extra memory.

    def __init__(self, data, batch_size, examples=None, generator=None, steps=None, shuffle=True):
        self.data = data
        self.num_examples = num_examples(data)
        self.batch_size = number("batch_size", batch_size, least=1, whole=True)
        self.examples = np.arange(self.num_examples) if examples is None else examples
        self.generator, self.shuffle = generator, shuffle
        self.pass_length = -(-len(self.examples) // self.batch_size)
        self.steps = steps
        self.num_batches = steps or self.pass_length

    @property
    def spec(self):
        """The batches' `tf.TensorSpec`s."""
        return map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), self.data)

    def check(self, places, limits, what):
        """Raises a `ValueError` when an example has no learned weight, see `check_below`."""
        found = places(self.data)
        check_below({k: v.numpy()[self.examples] for k, v in found.items()}, limits, what)

    def subset(self, examples, batch_size=None, generator=None, shuffle=True):
        """The same arrays with other examples."""
        size = self.batch_size if batch_size is None else batch_size
        return ArrayBatches(self.data, size, examples, generator, self.steps, shuffle)

    def timing_batches(self):
        """Batches of the same kind and number; using them changes nothing."""
        return self.subset(self.examples)

    def shuffled(self, generator, shuffle=True):
        """The same arrays, in an order that a generator draws for every pass."""
        return self.subset(self.examples, generator=generator, shuffle=shuffle)

    def start(self):
        """A source for one pass."""
        return ArraySource(
            self.data, tf.constant(self._order(), "int64"), tf.constant(self.batch_size, "int32")
        )

    def _order(self):
        if self.generator is None:
            return self.examples
        if self.shuffle != "batch":
            return self.generator.permutation(self.examples)
        firsts = range(0, len(self.examples), self.batch_size)
        batches = [self.examples[first : first + self.batch_size] for first in firsts]
        return np.concatenate([self.generator.permutation(batch) for batch in batches])

    def replay(self, taken):
        """Begins one pass for each of the numbers of batches taken; the last one's source."""
        return [self.start() for _ in taken][-1] if taken else None


def yields_batches(x):
    """Whether it yields batches, but is no dataset: a generator, a distributed dataset."""
    return hasattr(x, "__next__") or isinstance(x, tf.distribute.DistributedDataset)


def arrays_of(data, class_weight, what):
    x, y, sample_weight = data
    if yields_batches(x):
        raise ValueError(
            f"{what[0]} must be arrays, a tf.data.Dataset or a keras.utils.PyDataset "
            "(tf.data.Dataset.from_generator makes a dataset of a generator). "
            f"Received: {type(x).__name__}"
        )
    if x is None or not tf.nest.flatten(x):
        raise ValueError(f"{what[0]} is missing. Pass arrays or a dataset. Received: x={x!r}")
    return as_arrays(x, y, sample_weight, class_weight, what[0])


def array_batches(arrays, batch_size, steps, what, examples=None):
    if steps is not None:
        steps = number(what[1], steps, least=1, whole=True)
    if batch_size is None:  # As in Keras.
        count = num_examples(arrays) if examples is None else len(examples)
        batch_size = 32 if steps is None else -(-count // steps)
    batches = ArrayBatches(arrays, batch_size, examples, steps=steps)
    if steps is not None and steps > batches.pass_length:
        raise too_few(what, batches.pass_length, steps)
    return batches


def num_examples(data):
    """The number of examples in arrays of equal length."""
    return next(len(array) for array in tf.nest.flatten(data) if array is not None)


def too_few(what, number, steps):
    return ValueError(f"{what[0]} has only {number} batches. Received: {what[1]}={steps}")


def as_arrays(x, y, sample_weight, class_weight=None, what="x"):
    """`(x, y, sample_weight)` as tensors on the device, checked; floats become `floatx`."""
    if class_weight is not None:
        sample_weight = weights_of_classes(y, sample_weight, class_weight)
    if isinstance(y, (dict, list, tuple)) and isinstance(sample_weight, (dict, list, tuple)):
        names = [
            sorted(each) if isinstance(each, dict) else len(each) for each in (y, sample_weight)
        ]
        if names[0] != names[1]:
            raise ValueError(
                f"`sample_weight` of {what} must hold one array for each output of `y`. "
                f"Received: {names[1]} for {names[0]}"
            )
    data = map_structure(_tensor, (x, y, sample_weight))
    lengths = [len(array) for array in tf.nest.flatten(data) if array is not None]
    if len(set(lengths)) != 1:
        raise ValueError(
            f"{what} must hold arrays of the same number of examples. Received: {lengths}"
        )
    if lengths[0] == 0:
        raise ValueError(f"{what} is empty: it holds no examples. Pass at least one.")
    return data


def _tensor(array):
    if isinstance(array, tf.SparseTensor) or hasattr(array, "tocsr"):
        raise ValueError(
            "Sparse data must come as a dataset of batches: "
            "tf.data.Dataset.from_tensor_slices((sparse_tensor, y)).batch(batch_size). "
            f"Received: {type(array).__name__} of shape {array.shape}"
        )
    if not tf.is_tensor(array):
        array = np.asarray(array)
    tensor = tf.convert_to_tensor(array)
    if tensor.shape.rank == 0:
        raise ValueError(
            "Data must be arrays with one entry per example; turn lists of numbers into arrays "
            f"with numpy.asarray. Received: {array!r}"
        )
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating else tensor


def weights_of_classes(y, sample_weight, class_weight):
    if sample_weight is not None:
        raise ValueError("Pass either `class_weight` or `sample_weight`, not both.")
    if y is None or isinstance(y, (dict, list, tuple)) or np.ndim(y) not in (1, 2):
        raise ValueError(
            "`class_weight` needs one array of labels `y`, class numbers or one-hot. "
            f"Received: y of type {type(y).__name__} with shape {np.shape(y)}"
        )
    labels = np.asarray(y)
    labels = labels.argmax(-1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
    classes, positions = np.unique(np.round(labels), return_inverse=True)
    weights = np.array([class_weight.get(int(c), 1.0) for c in classes], keras.config.floatx())
    return weights[positions]
