"""The sources that compiled loops take batches from."""

import itertools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_fds.data.batches import unpack


class ArraySource(NamedTuple):
    """Arrays and the order of their examples, as tensors for a compiled loop."""

    data: tuple
    order: tf.Tensor
    batch_size: tf.Tensor


class MaterializedSource(NamedTuple):
    """Batches of an iterator, one after the other, and where each one begins."""

    data: tuple
    begins: tf.Tensor


class LookedInto:
    """A pass over a dataset whose first element was looked at; it comes first again.

    The iterator is at the second one; the signature is the `tf.TypeSpec`s of the elements.
    """

    def __init__(self, first, iterator, signature):
        self._elements = itertools.chain([first], iterator)
        self._signature, self._in_graph = signature, None

    def __next__(self):
        return next(self._elements)

    def in_graph(self):
        """A `tf.data.Iterator` over what is left, the same at every call."""
        if self._in_graph is None:
            dataset = tf.data.Dataset.from_generator(
                lambda: self._elements, output_signature=self._signature
            )
            self._in_graph = iter(dataset.prefetch(tf.data.AUTOTUNE))
        return self._in_graph


def in_graph(source):
    """A source as compiled functions take it."""
    return source.in_graph() if isinstance(source, LookedInto) else source


def is_streamed(source):
    """Whether the batches of a source come one after the other, each once."""
    return isinstance(source, (tf.data.Iterator, LookedInto))


def get_batch(source, position):
    """Batch number `position` of a source, a tuple `(x, y, sample_weight)`; in a graph.

    A `tf.data.Iterator` gives its next batch, whatever the position. Positions are int32: on a GPU
    these stay on the host, where slices need them.
    """
    if isinstance(source, LookedInto):
        return unpack(next(source))
    if isinstance(source, tf.data.Iterator):
        return unpack(source.get_next())
    if isinstance(source, MaterializedSource):
        first, end = source.begins[position], source.begins[position + 1]
        return map_structure(lambda array: array[first:end], source.data)
    first = tf.cast(position, "int32") * source.batch_size
    chosen = source.order[first : first + source.batch_size]
    return map_structure(lambda array: tf.gather(array, chosen), source.data)


def materialize(iterator, count):
    """The next `count` batches of an iterator as a `MaterializedSource`, which can be replayed."""
    batches = [unpack(next(iterator)) for _ in range(count)]
    flat = [tf.nest.flatten(batch) for batch in batches]
    if not all(tensor is None or tf.is_tensor(tensor) for tensor in flat[0]):
        raise ValueError(
            "Sparse and ragged batches cannot be replayed. Use differentiation='forward'."
        )
    if len({tuple(t if t is None else tuple(t.shape[1:]) for t in each) for each in flat}) > 1:
        raise ValueError(
            "Batches that differ in more than their number of examples cannot be joined and "
            "replayed. Use differentiation='forward'."
        )
    joined = [None if t[0] is None else tf.concat(t, 0) for t in zip(*flat)]
    sizes = [next(len(t) for t in tensors if t is not None) for tensors in flat]
    begins = tf.constant(np.cumsum([0, *sizes]), "int32")
    return MaterializedSource(tf.nest.pack_sequence_as(batches[0], joined), begins)


def replayable(batches):
    """A source of all batches, each of which can be taken any number of times."""
    source = batches.start()
    return materialize(source, batches.num_batches) if is_streamed(source) else source


def size_in_bytes(structure):
    """Memory of a structure of tensors or variables."""
    tensors = [t for t in tf.nest.flatten(structure) if t is not None]
    return sum(int(np.prod(t.shape)) * t.dtype.size for t in tensors)


def map_structure(function, structure):
    """`tf.nest.map_structure` that leaves `None` alone."""
    return tf.nest.map_structure(lambda t: None if t is None else function(t), structure)
