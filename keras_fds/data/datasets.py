"""Batches of datasets, streamed."""

import contextlib
import functools
import itertools

import keras
import tensorflow as tf

from keras_fds.data.arrays import too_few
from keras_fds.data.batches import Numbered, check_below, pack, plain, unpack
from keras_fds.data.py_dataset import PyDatasetPasses
from keras_fds.data.sources import LookedInto, size_in_bytes
from keras_fds.numbers import number


@contextlib.contextmanager
def telling_of_the_end(argument):
    """Raises a `ValueError` that names the argument which asked for too many batches."""
    try:
        yield
    except (tf.errors.OutOfRangeError, StopIteration) as error:
        raise ValueError(
            f"The dataset ended early: it holds fewer batches than {argument}. Lower "
            f"{argument}, or repeat the dataset."
        ) from error


@contextlib.contextmanager
def raising_errors_of(*batches):
    """Raises the error of a `PyDataset` or a check in place of what TensorFlow makes of it."""
    try:
        yield
    except tf.errors.OpError as error:
        for each in batches:
            if isinstance(each, DatasetBatches) and each.error:
                raise each.error from error
        raise


class DatasetBatches:
    """Batches of a `tf.data.Dataset` or a `keras.utils.PyDataset`, prefetched.

    Args:
        dataset: A dataset of batches `x`, `(x, y)`, `(x, y, sample_weight)`, or with the number of
            each example as a fourth part.
        num_batches: Number of batches used in a pass. Defaults to the dataset's cardinality.
        what: What messages call the dataset, and the argument that gives its length.
        class_weight: As in `model.fit`.
        continues: Whether a pass over an endless dataset begins where the last one ended, as in
            training. In validation every pass begins at the start. Defaults to `True`.

    Attributes:
        num_batches: Number of batches in an epoch.
        pass_length: Number of batches in a pass over the dataset.
    """

    def __init__(
        self,
        dataset,
        num_batches=None,
        what=("The dataset", "steps_per_epoch"),
        class_weight=None,
        continues=True,
    ):
        is_python = isinstance(dataset, keras.utils.PyDataset)
        if not is_python and not isinstance(dataset, tf.data.Dataset):
            raise ValueError(
                f"{what[0]} must be a tf.data.Dataset or a keras.utils.PyDataset. "
                f"Received: {type(dataset).__name__}"
            )
        self.passes = PyDatasetPasses(dataset, what[0]) if is_python else None
        cardinality = int((self.passes or dataset).cardinality())
        if num_batches is not None:
            num_batches = number(what[1], num_batches, least=1, whole=True)
        if num_batches is None and cardinality < 0:
            kind = "infinite" if cardinality == tf.data.INFINITE_CARDINALITY else "unknown"
            raise ValueError(
                f"{what[0]} has {kind} length. Pass `{what[1]}`, the number of batches to take."
            )
        if cardinality == 0:
            raise ValueError(f"{what[0]} is empty. Pass a dataset with at least one batch.")
        if num_batches is not None and 0 <= cardinality < num_batches:
            raise too_few(what, cardinality, num_batches)
        self.num_batches = num_batches or cardinality
        self.pass_length = cardinality if continues and cardinality > 0 else self.num_batches
        self.what = what
        self._continues = continues and cardinality == tf.data.INFINITE_CARDINALITY
        self._iterator = self._looked_into = None
        self._error = None
        self._source = self.passes.dataset(self.pass_length) if self.passes else dataset
        self._functions = []
        self.dataset = self._source.prefetch(tf.data.AUTOTUNE)
        if class_weight is not None:
            self._map(_weighing_classes(class_weight))

    def _map(self, function):
        """Applies a function of an element's parts to every element."""
        self._functions.append(function)
        self._source = self._source.map(function)
        self.dataset = self._source.prefetch(tf.data.AUTOTUNE)
        self._looked_into = None
        vars(self).pop("first", None)

    def check(self, places, limits, what):
        """Has every batch checked by `check_below`; the error is that of the pass, see `error`."""

        def refuse(length, *of_batch):
            try:
                check_below(dict(zip(limits, of_batch)), limits, what, length)
            except ValueError as error:
                self._error = error
                raise

        def checked(*batch):
            found = places(unpack(batch))
            length = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]
            wrong = [tf.reduce_any((found[k] < 0) | (found[k] >= n)) for k, n in limits.items()]
            wrong += [tf.size(each, tf.int64) != length for each in found.values()]
            refused = tf.cond(
                tf.reduce_any(wrong),
                lambda: tf.numpy_function(refuse, [length, *(found[k] for k in limits)], []),
                tf.no_op,
            )
            with tf.control_dependencies([refused]):
                return tf.nest.map_structure(tf.identity, batch)

        self._map(checked)

    @property
    def error(self):
        """What ended a pass: an error of the `PyDataset` or of a check, or `None`."""
        return self._error or (self.passes and self.passes.error)

    @property
    def spec(self):
        """The batches' `tf.TensorSpec`s."""
        return unpack(self.dataset.element_spec)

    @functools.cached_property
    def first(self):
        """The first element. `start` next begins the pass that it belongs to."""
        with raising_errors_of(self):
            if not self.passes:
                self._looked_into = iter(self.dataset)
                return next(self._looked_into)
            first = self.passes.first
            for function in self._functions:
                first = function(*first)
            return first

    @property
    def bytes_to_keep(self):
        """Memory of one batch that is kept for replay, estimated from the first."""
        return size_in_bytes(self.first)

    def timing_batches(self):
        """Batches of the same kind and number, copies of `first`; no pass is begun."""
        first = self.first  # Looked at now, whether or not anything is timed.
        repeated = tf.data.Dataset.from_generator(
            lambda: itertools.repeat(first), output_signature=self.dataset.element_spec
        )
        return DatasetBatches(repeated, self.num_batches)

    def shuffled(self, generator, shuffle=True):
        """The same. The batches of a `PyDataset` come in a new order every pass, as in Keras."""
        if self.passes:
            self.passes.generator = generator
        return self

    def start(self):
        """A source for one pass; an endless dataset may continue where the last pass ended."""
        if self._looked_into:
            signature = self.dataset.element_spec
            self._iterator = LookedInto(self.first, self._looked_into, signature)
            self._looked_into = None
        elif self._iterator is None or not self._continues:
            self._iterator = iter(self.dataset)
        return self._iterator

    def replay(self, taken):
        """Begins one pass for each of the numbers of batches taken; the last one's source."""
        with telling_of_the_end(f"`{self.what[1]}`"):
            for count in taken:
                iterator = self.start()
                for _ in range(count):
                    next(iterator)
        return self._iterator


def finite_batches(train_data, validation_data):
    """All batches of the datasets of one unroll, a pair of `DatasetBatches`."""
    return [
        DatasetBatches(dataset, None, (f"`{name}`", "dataset.take(n)"))
        for name, dataset in (("train_data", train_data), ("validation_data", validation_data))
    ]


def _weighing_classes(class_weight):
    """A function of a dataset's batch that adds the weights of its classes."""
    classes = tf.constant(list(class_weight), "int64")
    weights = tf.constant(list(class_weight.values()), keras.config.floatx())

    def weigh(*batch):
        x, y, sample_weight = unpack(batch)
        if plain((x, y, sample_weight))[2] is not None:
            raise ValueError("Pass either `class_weight` or sample weights, not both.")
        if not tf.is_tensor(y) or y.shape.rank not in (1, 2):
            raise ValueError(
                "`class_weight` needs one tensor of labels in every batch, class numbers or "
                f"one-hot. Received: {y}"
            )
        labels = y
        if y.shape.rank == 2:
            labels = tf.argmax(y, -1) if y.shape[1] != 1 else tf.squeeze(y, -1)
        if labels.dtype.is_floating:
            labels = tf.round(labels)
        matches = tf.equal(tf.cast(labels, "int64")[:, None], classes)
        known = tf.reduce_sum(tf.where(matches, weights, 0), 1)
        known = tf.where(tf.reduce_any(matches, 1), known, 1)
        if isinstance(sample_weight, Numbered):
            known = sample_weight._replace(sample_weight=known)
        return pack(x, y, known)

    return weigh
