"""Batches for the compiled loops: arrays gathered on the device, datasets streamed."""

import contextlib
import functools
import itertools
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_fds._py_dataset import PyDatasetPasses


class ArraySource(NamedTuple):
    """Arrays and the order of their examples, as tensors for a compiled loop."""

    data: tuple
    order: tf.Tensor
    batch_size: tf.Tensor


class KeptSource(NamedTuple):
    """Batches of an iterator, one after the other, and where each one begins."""

    data: tuple
    begins: tf.Tensor


def take(source, position):
    """Batch number `position` of a source, a tuple `(x, y, sample_weight)`; in a graph.

    A `tf.data.Iterator` gives its next batch, whatever the position.
    """
    if isinstance(source, tf.data.Iterator):
        return keras.utils.unpack_x_y_sample_weight(source.get_next())
    if isinstance(source, KeptSource):
        first, end = source.begins[position], source.begins[position + 1]
        return map_structure(lambda array: array[first:end], source.data)
    first = position * source.batch_size
    chosen = source.order[first : first + source.batch_size]
    return map_structure(lambda array: tf.gather(array, chosen), source.data)


def keep(iterator, count):
    """The next `count` batches of an iterator as a `KeptSource`, from which they can be replayed.

    Raises:
        ValueError: When the batches are sparse or ragged, or of shapes that cannot be joined.
    """
    batches = [keras.utils.unpack_x_y_sample_weight(next(iterator)) for _ in range(count)]
    flat = [tf.nest.flatten(batch) for batch in batches]
    if not all(tensor is None or tf.is_tensor(tensor) for tensor in flat[0]):
        raise ValueError(
            "Sparse and ragged batches cannot be replayed. Use differentiation='forward'."
        )
    if len({tuple(t if t is None else tuple(t.shape[1:]) for t in each) for each in flat}) > 1:
        raise ValueError(
            "Batches that differ in more than their number of examples cannot be joined, to be "
            "replayed. Use differentiation='forward'."
        )
    joined = [None if t[0] is None else tf.concat(t, 0) for t in zip(*flat)]
    sizes = [next(len(t) for t in tensors if t is not None) for tensors in flat]
    begins = tf.constant(np.cumsum([0, *sizes]), "int64")
    return KeptSource(tf.nest.pack_sequence_as(batches[0], joined), begins)


def not_finite_in(batches):
    """Which parts of some `ArrayBatches`, or of a dataset's first batch, hold NaN or infinities."""
    data = batches.data if isinstance(batches, ArrayBatches) else batches.first
    parts = zip(("inputs", "targets", "sample weights"), keras.utils.unpack_x_y_sample_weight(data))
    return [
        name
        for name, part in parts
        for tensor in keras.tree.flatten(part)
        if tf.is_tensor(tensor) and tensor.dtype.is_floating
        if not bool(tf.reduce_all(tf.math.is_finite(tensor)))
    ]


def size_in_bytes(structure):
    """Memory of a structure of tensors or variables."""
    tensors = [t for t in tf.nest.flatten(structure) if t is not None]
    return sum(int(np.prod(t.shape)) * t.dtype.size for t in tensors)


def map_structure(function, structure):
    """`tf.nest.map_structure` that leaves `None` alone."""
    return tf.nest.map_structure(lambda t: None if t is None else function(t), structure)


def whole_number(name, value):
    """The value as an int; a `ValueError` unless it is a whole number of at least 1."""
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if is_number and 1 <= value < np.inf and int(value) == value:
        return int(value)
    raise ValueError(f"`{name}` must be a whole number of at least 1. Received: {name}={value!r}")


@contextlib.contextmanager
def telling_of_the_end(argument):
    """Says in a `ValueError` which argument asked for more batches than a dataset held."""
    try:
        yield
    except (tf.errors.OutOfRangeError, StopIteration) as error:
        raise ValueError(
            f"The dataset ended early: it holds fewer batches than {argument} says. Lower "
            f"{argument}, or repeat the dataset."
        ) from error


@contextlib.contextmanager
def raising_errors_of(*batches):
    """Raises what a `PyDataset` raised, where TensorFlow raises an error of its own instead."""
    try:
        yield
    except tf.errors.OpError as error:
        for each in batches:
            if isinstance(each, DatasetBatches) and each.passes and each.passes.error:
                raise each.passes.error from error
        raise


class ArrayBatches:
    """Batches of in-memory arrays.

    Args:
        data: `(x, y, sample_weight)`, structures of arrays of equal length; `None` allowed.
        batch_size: Examples a batch; the last batch may be smaller.
        examples: Positions to use, an int array. Defaults to all.
        generator: A `numpy.random.Generator` that shuffles every pass, or `None` for order.
        steps: How many batches of a pass are used. Defaults to `None`, all.
        shuffle: `"batch"` shuffles within batches only. Defaults to `True`.

    Attributes:
        num_batches: How many batches are used.
        pass_length: How many there are.
    """

    bytes_to_keep = 0  # To replay a batch takes no more memory.

    def __init__(self, data, batch_size, examples=None, generator=None, steps=None, shuffle=True):
        self.data = data
        self.num_examples = next(len(a) for a in tf.nest.flatten(data) if a is not None)
        self.batch_size = whole_number("batch_size", batch_size)
        self.examples = np.arange(self.num_examples) if examples is None else examples
        self.generator, self.shuffle = generator, shuffle
        self.pass_length = -(-len(self.examples) // self.batch_size)
        self.steps = steps
        self.num_batches = steps or self.pass_length

    @property
    def spec(self):
        """The batches' `tf.TensorSpec`s."""
        return map_structure(lambda a: tf.TensorSpec([None, *a.shape[1:]], a.dtype), self.data)

    def subset(self, examples, batch_size=None, generator=None, shuffle=True):
        """The same arrays with other examples."""
        size = self.batch_size if batch_size is None else batch_size
        return ArrayBatches(self.data, size, examples, generator, self.steps, shuffle)

    def alike(self):
        """Batches of the same kind and number, which to use changes nothing."""
        return self.subset(self.examples)

    def shuffled(self, generator, shuffle=True):
        """The same, in an order that a generator draws every pass."""
        return self.subset(self.examples, generator=generator, shuffle=shuffle)

    def start(self):
        """A source for one pass."""
        return ArraySource(
            self.data, tf.constant(self._order(), "int64"), tf.constant(self.batch_size, "int64")
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
        """Begins passes of which so many batches each are taken; the last one's source."""
        return [self.start() for _ in taken][-1] if taken else None


class DatasetBatches:
    """Batches of a `tf.data.Dataset` or a `keras.utils.PyDataset`, prefetched.

    Args:
        dataset: A dataset of batches `x`, `(x, y)` or `(x, y, sample_weight)`.
        num_batches: How many batches are used; by default the dataset's cardinality.
        what: How messages call it, with the argument that gives its length.
        class_weight: As in `model.fit`.
        continues: Whether what a pass leaves is used before the next one begins, as in training;
            in validation every pass begins anew. Defaults to `True`.

    Attributes:
        num_batches: How many batches are used.
        pass_length: How many a pass has.
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
        self.passes = PyDatasetPasses(dataset, what[0]) if is_python else None
        cardinality = int((self.passes or dataset).cardinality())
        if num_batches is not None:
            num_batches = whole_number(what[1], num_batches)
        if num_batches is None and cardinality < 0:
            kind = "infinite" if cardinality == tf.data.INFINITE_CARDINALITY else "unknown"
            raise ValueError(
                f"{what[0]} has {kind} length. Pass `{what[1]}`, the number of batches to take."
            )
        if cardinality == 0:
            raise ValueError(f"{what[0]} is empty.")
        if num_batches is not None and 0 <= cardinality < num_batches:
            raise _too_few(what, cardinality, num_batches)
        self.num_batches = num_batches or cardinality
        self.pass_length = cardinality if continues and cardinality > 0 else self.num_batches
        self.what = what
        self._continues = continues and cardinality == tf.data.INFINITE_CARDINALITY
        self._iterator = self._looked_into = None
        if self.passes:
            dataset = self.passes.dataset(self.pass_length)
        self._weigh = None if class_weight is None else _weighing_classes(class_weight)
        if self._weigh:
            dataset = dataset.map(self._weigh)
        self.dataset = dataset.prefetch(tf.data.AUTOTUNE)

    @property
    def spec(self):
        """The batches' `tf.TensorSpec`s."""
        return keras.utils.unpack_x_y_sample_weight(self.dataset.element_spec)

    @functools.cached_property
    def first(self):
        """The first element; the pass that begins with it is the one that `start` begins next."""
        if not self.passes:
            self._looked_into = iter(self.dataset)
            return next(self._looked_into)
        first = self.passes.first
        return self._weigh(*first) if self._weigh else first

    @property
    def bytes_to_keep(self):
        """Memory of a batch that is kept to be replayed, by the first one."""
        return size_in_bytes(self.first)

    def alike(self):
        """Batches of the same kind and number, all like `first`: no pass is begun."""
        return DatasetBatches(self._dataset_of(itertools.repeat(self.first)), self.num_batches)

    def shuffled(self, generator, shuffle=True):
        """The same; a `PyDataset`'s batches come in an order drawn every pass, as in Keras."""
        if self.passes:
            self.passes.generator = generator
        return self

    def start(self):
        """A source for one pass; an endless dataset may go on where the last pass ended."""
        if self._looked_into:
            elements = itertools.chain([self.first], self._looked_into)
            self._iterator = iter(self._dataset_of(elements).prefetch(tf.data.AUTOTUNE))
            self._looked_into = None
        elif self._iterator is None or not self._continues:
            self._iterator = iter(self.dataset)
        return self._iterator

    def _dataset_of(self, elements):
        signature = self.dataset.element_spec
        return tf.data.Dataset.from_generator(lambda: elements, output_signature=signature)

    def replay(self, taken):
        """Begins passes of which so many batches each are taken; the last one's source."""
        with telling_of_the_end(f"`{self.what[1]}`"):
            for count in taken:
                iterator = self.start()
                for _ in range(count):
                    next(iterator)
        return self._iterator


class SplitData:
    """Training and validation batches of each outer step.

    Args:
        train, validation: `ArrayBatches` or `DatasetBatches`.
        shuffle: Whether training arrays, or the batches of a `PyDataset`, are shuffled every
            pass; `"batch"` shuffles within batches of arrays only.
        resample: Whether each outer step draws anew which examples of the arrays are held out.
    """

    def __init__(self, train, validation, shuffle, resample=False):
        self.train, self.validation, self.shuffle = train, validation, shuffle
        self.resample = resample
        self.spec = train.spec
        self.num_batches = train.num_batches

    def draw(self, generator, of_split):
        """`(train, validation)` batches for one outer step.

        Args:
            generator: A `numpy.random.Generator` that shuffles.
            of_split: One that draws what is held out.
        """
        train, validation = self.train, self.validation
        if self.resample:
            order = of_split.permutation(train.num_examples)
            number = len(validation.examples)
            train = train.subset(np.sort(order[number:]))
            validation = validation.subset(np.sort(order[:number]))
        shuffles = self.shuffle is not False
        return train.shuffled(generator if shuffles else None, self.shuffle), validation

    def alike(self):
        """`(train, validation)` batches like those of `draw`, which to use changes nothing."""
        return self.train.alike(), self.validation.alike()

    def replay(self, taken):
        """Leaves the datasets as passes do of which so many batches each were taken."""
        for batches, of_passes in zip((self.train, self.validation), taken):
            if isinstance(batches, DatasetBatches):
                batches.replay(of_passes)


def split_data(data, split, batch_size, steps, class_weight, resample, validation, shuffle):
    """The `SplitData` of arrays of which a part is held out.

    Args:
        data: `(x, y, sample_weight)`, arrays.
        split: The fraction to hold out: the last part, as in Keras.
        batch_size, steps: Of training.
        class_weight: As in `model.fit`: it weighs what is trained on, not what is held out.
        resample: Whether a part drawn at random is held out, in place of the last.
        validation: `(batch_size, steps)` of what is held out.
        shuffle: See `SplitData`.

    Raises:
        ValueError: When there are no arrays, too few examples, or fewer batches than `steps`.
    """
    if isinstance(data[0], (tf.data.Dataset, keras.utils.PyDataset)):
        raise ValueError("`validation_split` needs arrays; pass `validation_data` instead.")
    what = "The training data", "steps_per_epoch"
    held_out_data = _arrays_of(data, None, what)
    number = next(len(a) for a in tf.nest.flatten(held_out_data) if a is not None)
    first = int(np.floor(number * (1.0 - split)))
    if not 0 < first < number:
        raise ValueError(
            f"`validation_split`={split} of {number} examples leaves nothing to train or to "
            "validate on."
        )
    weighed = held_out_data
    if class_weight is not None:
        weighed = (*held_out_data[:2], tf.constant(_class_weights(*data[1:], class_weight)))
    every = np.arange(number)
    return SplitData(
        _array_batches(weighed, batch_size, steps, what, every[:first]),
        _array_batches(
            held_out_data, *validation, ("What is held out", "validation_steps"), every[first:]
        ),
        shuffle,
        resample,
    )


def make_batches(data, batch_size, steps, what, class_weight=None, continues=True):
    """Batches of `(x, y, sample_weight)`, where `x` is arrays or a dataset.

    Args:
        data: `(x, y, sample_weight)`.
        batch_size: Examples a batch of arrays; `None` is Keras's 32, or what `steps` makes it.
        steps: Batches to use, or `None` for all.
        what: How messages call the data, and the argument that gives `steps`.
        class_weight: As in `model.fit`.
        continues: See `DatasetBatches`.

    Raises:
        ValueError: When data are missing, empty, or shorter than `steps`.
    """
    x, y, sample_weight = data
    if isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)):
        if y is not None or sample_weight is not None:
            raise ValueError(f"{what[0]} is a dataset, which holds its own y and sample_weight.")
        return DatasetBatches(x, steps, what, class_weight, continues)
    return _array_batches(_arrays_of(data, class_weight, what), batch_size, steps, what)


def _arrays_of(data, class_weight, what):
    x, y, sample_weight = data
    if hasattr(x, "__next__"):
        raise ValueError(
            f"{what[0]} must be arrays, a tf.data.Dataset or a keras.utils.PyDataset "
            "(tf.data.Dataset.from_generator makes a dataset of a generator). "
            f"Received: {type(x).__name__}"
        )
    if x is None or not tf.nest.flatten(x):
        raise ValueError(f"{what[0]} is missing: `x` is {x!r}.")
    return as_arrays(x, y, sample_weight, class_weight, what[0])


def _array_batches(arrays, batch_size, steps, what, examples=None):
    if steps is not None:
        steps = whole_number(what[1], steps)
    batches = ArrayBatches(arrays, 32 if batch_size is None else batch_size, examples)
    if batch_size is None and steps is not None:  # As in Keras.
        size = -(-len(batches.examples) // steps)
        batches = ArrayBatches(arrays, size, examples)
    if steps is not None and steps > batches.pass_length:
        raise _too_few(what, batches.pass_length, steps)
    return ArrayBatches(arrays, batches.batch_size, examples, steps=steps)


def _too_few(what, number, steps):
    return ValueError(f"{what[0]} has only {number} batches. Received: {what[1]}={steps}")


def as_arrays(x, y, sample_weight, class_weight=None, what="x"):
    """`(x, y, sample_weight)` as tensors on the device, checked; floats become `floatx`.

    Raises:
        ValueError: When arrays are empty or of different lengths, with a sentence that
            names `what`.
    """
    if class_weight is not None:
        sample_weight = _class_weights(y, sample_weight, class_weight)
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
            f"All arrays of {what} must hold the same number of examples. Received: {lengths}"
        )
    if lengths[0] == 0:
        raise ValueError(f"{what} is empty: it holds no examples.")
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
            "Data must be arrays with one entry an example; turn lists of numbers into arrays with "
            f"numpy.asarray. Received: {array!r}"
        )
    return tf.cast(tensor, keras.config.floatx()) if tensor.dtype.is_floating else tensor


def _class_weights(y, sample_weight, class_weight):
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


def _weighing_classes(class_weight):
    """A function of a dataset's batch that adds the weights of its classes."""
    classes = tf.constant(list(class_weight), "int64")
    weights = tf.constant(list(class_weight.values()), keras.config.floatx())

    def weigh(*batch):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if sample_weight is not None:
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
        return x, y, tf.where(tf.reduce_any(matches, 1), known, 1)

    return weigh
