"""The replicas of a `tf.distribute` strategy: each computes with its rows of every batch.

All else of a training step is computed once by every process, from the same numbers. So a step is
the same for one device and for many but for `Replicas.run_and_sum`, which needs one transfer.
"""

import contextlib
import weakref
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import ArrayBatches, map_structure
from keras_fds.functional import build_compiled
from keras_fds.internals import (
    keras_distribution,
    keras_layers,
    keras_models,
    tf_compilation,
    tf_distribution,
)

_SUPPORTED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)
_LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)
# A transfer between processes is known by a number that only transfers of its length have.
_GROUP, _FIRST_KEY, _MOST_KEYS = 1_900_000_000, 1_000_000_000, 400_000_000
_GOLDEN = 0x9E3779B9  # Multiples of it are far from each other, modulo 2³².


class WholeBatch:
    """The rows of a batch that the only replica computes with: all of them."""

    replica, share = 0, None

    def __init__(self, batch):
        self.batch = batch

    def part_of_mean(self, tensor):
        """What the replica adds to a mean over the batch, given the mean over its rows."""
        return tensor

    part_of_sum = from_first = in_place = own_seed = part_of_mean

    def accumulated(self, before, after):
        """What it adds to a number that replicas count together."""
        return after


class Rows:
    """The rows of a batch that one of several replicas computes with; in a graph.

    Their numbers differ by at most one, so an uneven batch is divided too. A replica that has none,
    as the batch is smaller than the number of replicas, computes with one and adds zeros.

    Attributes:
        batch: Its rows of the batch.
        replica: The number of the replica.
        share: Its part of all rows, a float64 scalar; not 0.
    """

    def __init__(self, batch, replica, replicas):
        self._total = keras_models.batch_size(batch[0])
        self._begin = replica * self._total // replicas
        self._count = (replica + 1) * self._total // replicas - self._begin
        self._taken = tf.maximum(self._count, 1)
        end = self._begin + self._taken
        self.batch = map_structure(lambda tensor: tensor[self._begin : end], batch)
        self.replica = replica
        self.share = tf.cast(self._taken, "float64") / tf.cast(self._total, "float64")

    def part_of_sum(self, tensor):
        """What the replica adds to a sum over the batch, given the sum over its rows."""
        return tf.where(self._count > 0, tensor, tf.zeros_like(tensor))

    def part_of_mean(self, tensor):
        """What it adds to a mean over the batch, given the mean over its rows."""
        return self.part_of_sum(tensor * tf.cast(self.share, tensor.dtype))

    def own_seed(self, state):
        """The state of a seed generator, other than that of every other replica."""
        offset = tf.constant([self.replica * _GOLDEN % 2**32, 0], "uint32")
        return state + tf.bitcast(offset, state.dtype)

    def from_first(self, tensor):
        """A tensor of the first replica; zeros for the other ones."""
        return tensor if self.replica == 0 else tf.zeros_like(tensor)

    def accumulated(self, before, after):
        """What it adds to a number that replicas count together."""
        if not after.dtype.is_floating:
            return self.from_first(after)
        return self.part_of_sum(after - before) + self.from_first(before)

    def in_place(self, tensor, axis=0):
        """Its rows of a tensor in their place among those of the whole batch, the rest zero.

        An example may have several rows.
        """
        per_example = tf.shape(tensor)[axis] // self._taken
        before, own = self._begin * per_example, self._count * per_example
        after = self._total * per_example - before - own
        rank = tensor.shape.rank
        taken = tf.split(tensor, [own, tf.shape(tensor)[axis] - own], axis)[0]
        return tf.pad(taken, [[before, after] if i == axis else [0, 0] for i in range(rank)])


_OTHERWISE = (
    "Use one device, or differentiation=keras_fds.differentiation.Forward(parallel='tangents'), "
    "whose replicas train on whole batches."
)


def check_divisible(model):
    """Raises a `ValueError` for a model whose batches replicas cannot share."""
    for layer in keras_layers.layers_of(model):
        if getattr(layer, "synchronized", False):
            raise ValueError(
                f"The {keras_layers.named(layer)} has synchronized=True, and keras_fds makes one "
                "transfer a step, after the layers. Leave it out: each replica then normalizes by "
                f"its own rows. {_OTHERWISE}"
            )
        if getattr(layer, "stateful", False):
            raise ValueError(
                f"The {keras_layers.named(layer)} has stateful=True: its states belong to the rows "
                f"of a whole batch, which replicas share. {_OTHERWISE}"
            )
    reductions = keras_models.reductions(model)
    means = reductions & {"sum_over_batch_size", "mean"}
    if len(reductions - means) + bool(means) > 1 or "mean_with_sample_weight" in reductions:
        raise ValueError(
            "Replicas that share a batch need losses which are all means over the examples, or all "
            f"sums. Received: reductions {sorted(reductions)}. {_OTHERWISE}"
        )
    over_batch = (keras.losses.Dice, keras.losses.Tversky)
    for loss in keras.tree.flatten(model.loss):
        axis = getattr(loss, "axis", None)
        if isinstance(loss, over_batch) and (axis is None or 0 in np.atleast_1d(axis)):
            raise ValueError(
                f"The loss {type(loss).__name__} is one number for all rows of a batch, not a mean "
                f"over them. Pass `axis` without 0. {_OTHERWISE}"
            )


def check_unmasked(rows, outputs, sums):
    """Raises a `ValueError` for outputs whose mean over the batch leaves out masked places."""
    masked = any(hasattr(each, "_keras_mask") for each in tf.nest.flatten(outputs))
    if rows.share is not None and masked and not sums:
        raise ValueError(
            "The outputs of the model are masked, so its loss is the mean over the places that are "
            "not, and replicas have different numbers of them. Use reduction='sum' in the loss. "
            f"{_OTHERWISE}"
        )


class Replicas:
    """The replicas that share the steps of a training, in this process and in others.

    Args:
        strategy: A `tf.distribute.Strategy` of a supported kind. Defaults to `None`, one replica.

    Attributes:
        count: Their number.
        devices: The names of those of this process.
        first: The number of the first one of this process.
        is_chief: Whether this process is the one that writes files.
        processes: The number of processes.
        process: The number of this one.
    """

    def __init__(self, strategy=None):
        self.strategy, self.count = strategy, strategy.num_replicas_in_sync if strategy else 1
        self.devices, self.first = [None], 0
        if self.count > 1:
            self.devices = list(strategy.extended.worker_devices)
            numbers = tf_compilation.compiled(lambda: strategy.run(_number_of_replica))()
            self.first = int(strategy.experimental_local_results(numbers)[0])
        self.is_chief = self.first == 0
        self.processes = self.count // len(self.devices)
        self.process = self.first // len(self.devices)
        self.is_one_process = len(self.devices) == self.count
        self._sum_of_parts = tf_compilation.compiled(self._sum)

    @classmethod
    def of(cls, model):
        """Those of the strategy in whose scope a model was built, or `fit` is called."""
        strategy = model.distribute_strategy
        if not isinstance(strategy, _SUPPORTED):
            return ONE
        if strategy not in _of_strategies:
            _of_strategies[strategy] = cls(strategy)
        return _of_strategies[strategy]

    @staticmethod
    def check(strategy):
        """Raises a `ValueError` for a strategy that is not supported or lacks its devices."""
        with tf_distribution.outside_of_scopes():
            is_default = type(strategy) is type(tf.distribute.get_strategy())
        if is_default:
            return
        if not isinstance(strategy, _SUPPORTED):
            raise ValueError(
                "keras_fds trains under tf.distribute.MirroredStrategy, MultiWorkerMirroredStrategy"
                f" and OneDeviceStrategy. Received: {type(strategy).__name__}"
            )
        there = {_kind_and_number(device.name) for device in tf.config.list_logical_devices()}
        missing = [
            device
            for device in strategy.extended.worker_devices
            if _kind_and_number(device) not in there
        ]
        if missing:
            raise ValueError(
                f"The strategy is for {' and '.join(missing)}, which this machine does not have. "
                f"It has {', '.join(sorted(map(':'.join, there)))}."
            )

    def check_batches(self, batches):
        """Raises a `ValueError` for training batches that the replicas cannot share."""
        if self.count == 1:
            return
        specs = [spec for spec in tf.nest.flatten(batches.spec) if spec is not None]
        if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
            raise ValueError(
                f"Sparse and ragged batches cannot be divided among {self.count} replicas. Pass "
                "dense ones, or differentiation=keras_fds.differentiation.Forward(parallel="
                "'tangents')."
            )
        size = specs[0].shape[0]
        if isinstance(batches, ArrayBatches):
            size = min(batches.batch_size, len(batches.examples))
        if size is not None and size < self.count:
            raise ValueError(
                f"A batch of {size} examples is smaller than the {self.count} replicas that share "
                f"it. Use a `batch_size` of at least {self.count}, or fewer replicas."
            )

    # ------------------------------------------------------------------ in a step; in a graph
    def run_and_sum(self, function, batch):
        """The sum over all replicas of `function(rows)`, a nest of tensors or `None`.

        There is one transfer, of one vector. `function` must be traced alike on all replicas.
        """
        if self.count == 1:
            return function(WholeBatch(batch))
        results = []
        for i, device in enumerate(self.devices):
            with tf.device(device):
                results.append(function(Rows(batch, self.first + i, self.count)))
        like = [tensor for tensor in tf.nest.flatten(results[0]) if tensor is not None]
        dtype = "float64" if any(tensor.dtype == tf.float64 for tensor in like) else "float32"
        packed = []
        for device, result in zip(self.devices, results):
            with tf.device(device):
                packed.append(_packed(result, dtype))
        with tf.device(self.devices[0]):
            summed = iter(_unpacked(self._sum(packed), like))
        flat = [t if t is None else next(summed) for t in tf.nest.flatten(results[0])]
        return tf.nest.pack_sequence_as(results[0], flat)

    def differentiable(self, stage_on, batch):
        """`run_and_sum` of a stage of a training step, which reverse mode can differentiate.

        Args:
            stage_on: Takes rows, returns a function from primals to `(outputs, extra)`; only the
                outputs have derivatives.
            batch: The whole batch.

        Returns:
            A function from primals to `(outputs, extra)`, the sums over all replicas. Going back
            takes one transfer more.
        """
        if self.count == 1:
            return stage_on(WholeBatch(batch))

        def stage(*primals):
            found = []

            def forward(*flat):
                recorded = []  # Of each replica here.

                def run(rows):
                    inputs = [tf.identity(tensor) for tensor in flat]
                    with tf.GradientTape(watch_accessed_variables=False) as tape:
                        tape.watch(inputs)
                        results = stage_on(rows)(*tf.nest.pack_sequence_as(primals, inputs))
                    recorded.append((tape, inputs, tf.nest.flatten(results[0])))
                    return results

                def back(*cotangents, variables=()):
                    tapes = iter(recorded)

                    def run_back(rows):
                        tape, inputs, outputs = next(tapes)
                        gradients = tape.gradient(outputs, inputs, cotangents, "zero")
                        return [tf.convert_to_tensor(gradient) for gradient in gradients]

                    gradients = self.run_and_sum(run_back, batch)
                    return (gradients, [None] * len(variables)) if variables else gradients

                found.append(self.run_and_sum(run, batch))
                return tf.nest.flatten(found[0][0]), back

            flat = tf.custom_gradient(forward)(*tf.nest.flatten(primals))
            return tf.nest.pack_sequence_as(found[0][0], flat), found[0][1]

        return stage

    def _sum(self, vectors):
        """The sum of a vector that each replica has, on the first device here; in a graph."""
        if self.is_one_process:
            return tf.add_n(vectors)
        sums = []
        for device, vector in zip(self.devices, vectors):
            # Not `strategy.reduce`: within a loop its transfers must all have one length.
            key = _FIRST_KEY + tf.size(vector) % _MOST_KEYS
            with tf.device(device):
                reduced = tf.raw_ops.CollectiveReduceV2(
                    input=vector,
                    group_size=self.count,
                    group_key=_GROUP,
                    instance_key=key + _MOST_KEYS * (vector.dtype == tf.float64),
                    ordering_token=[],
                    merge_op="Add",
                    final_op="Id",
                )
                sums.append(tf.ensure_shape(reduced, vector.shape))
        return sums[0]

    # --------------------------------------------------------------------- between the steps
    def sum_over_processes(self, array):
        """The sum of a float64 array that every process has."""
        if self.is_one_process:
            return array
        parts = [tf.constant(np.ravel(array), "float64")]
        parts += [tf.zeros_like(parts[0])] * (len(self.devices) - 1)
        return self._sum_of_parts(parts).numpy().reshape(np.shape(array))

    def agreed(self, number):
        """The chief's number, which all processes have then."""
        if self.is_one_process:
            return number
        return float(self.sum_over_processes(np.float64(number if self.is_chief else 0.0)))

    def from_process(self, number, content):
        """The bytes of a process, which all processes have then; those of others do not count."""
        if self.is_one_process:
            return content
        content = content if number == self.process else b""
        length = int(self.sum_over_processes(np.float64(len(content))))
        words = np.zeros(-(-length // 4))
        if content:
            words[:] = np.frombuffer(content.ljust(4 * len(words), b"\0"), "uint32")
        return self.sum_over_processes(words).astype("uint32").tobytes()[:length]

    def any(self, flag):
        """Whether a flag is set in any process."""
        return bool(flag) if self.is_one_process else self.sum_over_processes(bool(flag)) > 0

    def check_alike(self, what, describe):
        """Raises a `ValueError` unless the text `describe()` is the same in all processes."""
        if self.is_one_process:
            return
        of_each = np.zeros(self.processes)
        of_each[self.process] = zlib.crc32(describe().encode())
        if np.ptp(self.sum_over_processes(of_each)):
            raise ValueError(
                f"The workers do not agree on {what}. Start the same program with the same "
                "arguments, data, seeds and checkpoints on all of them."
            )

    @contextlib.contextmanager
    def holding(self, model, batch):
        """While open, a model's variables are those of this process's first device.

        Afterwards the copies on other devices are the same. The model is built here, from the specs
        of a batch.
        """
        strategy = self.strategy
        if strategy is None:
            yield
            return
        with keras_distribution.scope_of(model):
            build_compiled(model, batch)
        variables = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
        distinct = {id(variable): variable for variable in variables}.values()
        with (
            tf_distribution.outside_of_scopes(),
            keras_distribution.on_first_device(model, strategy, distinct),
        ):
            try:
                yield
            except _LOST as error:
                if self.is_one_process:
                    raise
                raise ConnectionError(
                    "Another worker has stopped or cannot be reached, so this one stops too. Start "
                    "all workers again: with keras_fds.callbacks.Checkpoint and the same folder "
                    "the search resumes"
                ) from error


ONE = Replicas()
_of_strategies = weakref.WeakKeyDictionary()  # type: ignore[var-annotated]


def _number_of_replica():
    return tf.identity(tf.distribute.get_replica_context().replica_id_in_sync_group)


def _kind_and_number(device):
    """The kind and the number in the name of a device, such as `("CPU", "0")`."""
    return tuple(device.upper().split(":")[-2:])


def _packed(structure, dtype):
    """One vector of all tensors of a structure."""
    tensors = [tensor for tensor in tf.nest.flatten(structure) if tensor is not None]
    return tf.concat([tf.reshape(_as_floats(tensor, dtype), [-1]) for tensor in tensors], 0)


def _unpacked(packed, like):
    """The tensors of a vector, with the shapes and dtypes of others."""
    shapes = [tf.shape(_as_floats(tensor, packed.dtype)) for tensor in like]
    parts = tf.split(packed, tf.stack([tf.reduce_prod(shape) for shape in shapes]), num=len(like))
    tensors = []
    for part, shape, tensor in zip(parts, shapes, like):
        part = tf.reshape(part, shape)
        if _is_in_pieces(tensor):
            part = tf.bitcast(tf.cast(part, "uint16"), tensor.dtype)
        tensors.append(tf.ensure_shape(tf.cast(part, tensor.dtype), tensor.shape))
    return tensors


def _as_floats(tensor, dtype):
    """A tensor of numbers as floating-point ones, exact also for whole numbers."""
    if _is_in_pieces(tensor):
        tensor = tf.bitcast(tensor, "uint16")
    return tf.cast(tensor, dtype)


def _is_in_pieces(tensor):
    return tensor.dtype.is_integer and tensor.dtype.size > 2
