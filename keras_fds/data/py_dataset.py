"""A `keras.utils.PyDataset` as a `tf.data.Dataset`."""

import itertools
import threading

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data.batches import Numbered, numbers, pack, plain, unpack


class PyDatasetPasses:
    """The passes over a `keras.utils.PyDataset`, each one an iterator of a `tf.data.Dataset`.

    As in Keras's `fit`, a pass calls `on_epoch_begin` before it makes its first batch, and
    `on_epoch_end` after its last. Batches are made ahead of training, in one thread, and copied:
    `on_epoch_end` may shuffle the arrays that they were cut from.

    Args:
        py_dataset: Batches `x`, `(x, y)` or `(x, y, sample_weight)`.
        what: What messages call it.
    """

    def __init__(self, py_dataset, what):
        self.py_dataset, self.what = py_dataset, what
        self.generator = None  # A `numpy.random.Generator` draws the order of every pass.
        self.error = None  # What the `PyDataset` raised.
        self._lock = threading.Lock()
        self._newest = None
        self._is_open = False

    def cardinality(self):
        """Number of batches, or `tf.data.INFINITE_CARDINALITY`."""
        number = self.py_dataset.num_batches
        return tf.data.INFINITE_CARDINALITY if number is None else number

    def dataset(self, num_batches):
        """A `tf.data.Dataset` of `num_batches` batches; of an endless one, of all passes."""
        self.num_batches = num_batches
        self.specs = None
        first = self._batch(0)
        self.first = tf.nest.map_structure(tf.convert_to_tensor, first)
        self.specs = tf.nest.map_structure(
            lambda array: tf.TensorSpec([None] * array.ndim, array.dtype), first
        )
        # As in Keras, the second batch shows which axes may vary.
        second = first if self.cardinality() == 1 else self._batch(1)
        self.specs = tf.nest.map_structure(_common_spec, first, second)
        return tf.data.Dataset.from_generator(self._batches, output_signature=self.specs)

    def _batches(self):
        mine = self._newest = object()
        for number in itertools.count():
            position = number % self.num_batches
            with self._lock:
                if self._newest is not mine:  # Another pass has begun.
                    return
                try:
                    if position == 0:
                        order = self._begin(number)
                    batch = self._batch(order[position])
                    if position == self.num_batches - 1:
                        self._end()
                except Exception as error:
                    self.error = error
                    raise
            yield batch
            if position == self.num_batches - 1 and not self._is_endless:
                return

    @property
    def _is_endless(self):
        return self.cardinality() == tf.data.INFINITE_CARDINALITY

    def _begin(self, number):
        """Begins a pass; the order of its batches."""
        if self._is_open:
            self._end()
        self.py_dataset.on_epoch_begin()
        self._is_open = True
        if self._is_endless:
            return range(number, number + self.num_batches)
        if self.generator is None:
            return range(self.num_batches)
        return self.generator.permutation(self.cardinality())

    def _end(self):
        self.py_dataset.on_epoch_end()
        self._is_open = False

    def _batch(self, index):
        """A copy of batch number `index`, without parts that are `None`; floats become `floatx`."""
        batch = unpack(self.py_dataset[int(index)])
        x, y, sample_weight = plain(batch)
        x, y, sample_weight = map(keras.tree.lists_to_tuples, (x, y, sample_weight))
        if y is None and sample_weight is not None:
            raise ValueError(
                f"{self.what} has sample weights without targets: return (x, y, sample_weight). "
                f"Received: y=None in batch {index}"
            )
        number = numbers(batch)
        if number is not None:
            if sample_weight is None:
                sample_weight = np.ones(np.shape(number), keras.config.floatx())
            sample_weight = Numbered(sample_weight, number)
        packed = pack(x, y, sample_weight)
        arrays = tf.nest.map_structure(self._array, packed)
        if self.specs is None:
            return arrays
        try:
            return tf.nest.map_structure(_fitted, self.specs, arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{self.what} must have batches of one structure, whose arrays differ only in "
                "their number of examples (and in axes in which the first two batches differ). "
                f"Expected: {self.specs}. Received: "
                f"{tf.nest.map_structure(tf.type_spec_from_value, arrays)} as batch {index}"
            ) from error

    def _array(self, value):
        is_sparse = isinstance(value, (tf.SparseTensor, tf.RaggedTensor)) or hasattr(value, "tocsr")
        array = None if is_sparse else np.array(value)
        if is_sparse or array.ndim == 0:
            raise ValueError(
                f"{self.what} must have batches of arrays with one entry per example; sparse and "
                f"ragged ones must come as a tf.data.Dataset. Received: {value!r}"
            )
        is_floating = tf.as_dtype(array.dtype).is_floating
        return array.astype(keras.config.floatx()) if is_floating else array


def _common_spec(*arrays):
    first, second = (array.shape[1:] for array in arrays)
    axes = [a if a == b else None for a, b in zip(first, second)]
    return tf.TensorSpec([None, *axes], arrays[0].dtype)


def _fitted(spec, array):
    kind = spec.dtype.as_numpy_dtype
    if not spec.shape.is_compatible_with(array.shape) or not np.can_cast(
        array.dtype, kind, "same_kind"
    ):
        raise ValueError(f"{array.shape} {array.dtype} does not fit {spec}.")
    return array.astype(kind, copy=False)
