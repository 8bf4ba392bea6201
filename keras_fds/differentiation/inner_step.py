"""One training step as pure functions, and the state that it changes.

Forward and reverse mode share it: both differentiate the two stages of this step, and both take the
gradient of this validation loss. The gradient stage is computed by all replicas, each with its rows
of the batch; the update stage once.
"""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_fds.data import get_batch, in_graph, telling_of_the_end
from keras_fds.differentiation.divergence import DivergenceDetector
from keras_fds.differentiation.jacobian_products import (
    jacobian_vector_products,
    with_fixed_rng,
)
from keras_fds.differentiation.replicas import WholeBatch, check_divisible, check_unmasked
from keras_fds.functional import StatelessModel, StatelessOptimizer, build_compiled
from keras_fds.internals import keras_models, tf_compilation


class State(NamedTuple):
    """What a training step changes: lists of variables, or of tensors in their places.

    The first three are floating point and carry derivatives.
    """

    weights: list
    statistics: list
    slots: list
    counters: list
    optimizer_counters: list

    @property
    def differentiable(self):
        return self.weights, self.statistics, self.slots


class InnerStep:
    """The training step of a model that is compiled with a `HyperOptimizer`; it is built here.

    `batch` is the `tf.TensorSpec`s `(x, y, sample_weight)`; `replicas` are the `Replicas` that
    share the rows of every batch.
    """

    def __init__(self, model, batch, replicas):
        self.hyper_optimizer, self.replicas = model.optimizer, replicas
        build_compiled(model, batch)
        if replicas.count > 1:
            check_divisible(model)
        self.model = StatelessModel(
            model, batch, self.hyper_optimizer.model_names, self.hyper_optimizer.each_names
        )
        self.optimizer = StatelessOptimizer(
            self.hyper_optimizer.optimizer, self.hyper_optimizer.multiplied(model)
        )
        self.variables = State(
            self.model.weights,
            self.model.statistics,
            self.optimizer.slots,
            self.model.counters,
            self.optimizer.counters,
        )
        self.dtype = self.variables.weights[0].dtype
        self.detector, self.in_use = DivergenceDetector(), False
        self._gradients = with_fixed_rng(self.model.gradients)
        self._sums_losses = "sum" in keras_models.reductions(model)
        self._validate_batches = tf_compilation.compiled(self._validate_in_graph)
        self._by_xla = bool(model.jit_compile)

    def compiled(self, function):
        """A pure function as loops call it: compiled by XLA if the model is (`jit_compile`)."""
        if self._by_xla and self.replicas.count > 1:
            warnings.warn(
                "A step that several replicas share is not compiled by XLA, which has no transfers "
                "between them. Pass jit_compile=False to compile() to silence this.",
                RuntimeWarning,
                stacklevel=2,
            )
        if not self._by_xla or self.replicas.count > 1:
            return function
        return tf_compilation.by_xla(function, f"the training step of {self.model.model.name!r}")

    def reset(self, horizon, divergence_factor=None, fresh_slots=True):
        """Begins a run of that many inner steps; see `Mode`."""
        if fresh_slots:
            self.hyper_optimizer.reset_slots()
        self.hyper_optimizer.begin_schedules(horizon)
        self.detector.reset(divergence_factor)

    def read(self):
        """The present `State`, as tensors."""
        return tf.nest.map_structure(lambda variable: variable.read_value(), self.variables)

    def assign(self, state):
        """Makes a `State` of tensors the present one."""
        for variable, value in zip(tf.nest.flatten(self.variables), tf.nest.flatten(state)):
            variable.assign(value)

    def hyperparameters(self, inner_step, horizon):
        """`{name: tensor}` at a step, scalars or vectors."""
        return self.hyper_optimizer.values_at(inner_step, horizon, self.dtype)

    def by_stage(self, hyperparameters):
        """Splits `{name: value}` into the gradient stage's part and the update stage's."""
        names = self.hyper_optimizer.model_names
        rest = {name: v for name, v in hyperparameters.items() if name not in names}
        return {name: hyperparameters[name] for name in names}, rest

    def gradient_stage(self, counters, rows):
        """`(weights, statistics, hyperparameters) → ((gradients, statistics), (loss, outputs,
        counters, slices))`: what the rows of a replica add to those of the whole batch."""

        def stage(weights, statistics, hyperparameters):
            (gradients, statistics), (loss, outputs, after, slices) = self._gradients(
                weights,
                statistics,
                self._counters_of(rows, counters),
                hyperparameters,
                rows.batch,
                rows.share if self._sums_losses else None,
            )
            check_unmasked(rows, outputs, self._sums_losses)
            part = rows.part_of_sum if loss.shape.rank or self._sums_losses else rows.part_of_mean
            gradients = [
                part(g) if indices is None else rows.in_place(part(g))
                for g, indices in zip(gradients, slices)
            ]
            statistics = [rows.part_of_mean(statistic) for statistic in statistics]
            loss = rows.in_place(loss) if loss.shape.rank else part(loss)
            slices = [None if indices is None else rows.in_place(indices) for indices in slices]
            outputs = tf.nest.map_structure(rows.in_place, outputs)
            after = self._counters_after(rows, counters, after)
            return (gradients, statistics), (loss, outputs, after, slices)

        return stage

    def _counters_of(self, rows, counters):
        """The counters that a replica begins with: it draws random numbers of its own."""
        is_seed = self.model.is_seed
        return [rows.own_seed(c) if seed else c for c, seed in zip(counters, is_seed)]

    def _counters_after(self, rows, before, after):
        """What a replica adds to the counters after a step: metrics add up, others are alike."""
        return [
            rows.accumulated(a, b) if metric else rows.from_first(b)
            for a, b, metric in zip(before, after, self.model.is_metric)
        ]

    def gradients(self, state, batch):
        """The gradient stage of the whole batch, summed over all replicas."""
        return self.replicas.differentiable(
            lambda rows: self.gradient_stage(state.counters, rows), batch
        )

    def gradient_products(self, state, batch, primals, tangents, chunk_size):
        """`jacobian_vector_products` of the gradient stage, summed over all replicas."""

        def products(rows):
            stage = self.gradient_stage(state.counters, rows)
            return jacobian_vector_products(stage, primals, tangents, chunk_size)

        return self.replicas.run_and_sum(products, batch)

    def update_stage(self, state, slices, is_last):
        """`(weights, slots, hyperparameters, gradients) → ((weights, slots), counters)`.

        A boolean tensor tells whether it is the last step of a training.
        """

        def stage(weights, slots, hyperparameters, gradients):
            return self.optimizer.update(
                weights,
                slots,
                state.optimizer_counters,
                hyperparameters,
                gradients,
                slices,
                self.model.connected,
                is_last,
            )

        return stage

    def __call__(self, state, hyperparameters, batch, is_last):
        """Both stages: `(state, loss, outputs)` after the step."""
        of_model, of_optimizer = self.by_stage(hyperparameters)
        stage = self.gradients(state, batch)
        (gradients, statistics), (loss, outputs, counters, slices) = stage(
            state.weights, state.statistics, of_model
        )
        (weights, slots), optimizer_counters = self.update_stage(state, slices, is_last)(
            state.weights, state.slots, of_optimizer, gradients
        )
        after = State(weights, statistics, slots, counters, optimizer_counters)
        return after, loss, outputs

    # ------------------------------------------------------------------------ validation
    def validate(self, source, num_batches, training, at_batch=None):
        """The `Validation` of batches at the present state.

        Args:
            source: The source of batches, see `get_batch`.
            num_batches: Number of batches.
            training: Whether the model runs in training mode.
            at_batch: A context manager that is entered with the numbers of the first and the last
                batch of each compiled call. A call then has `steps_per_execution` batches. Defaults
                to `None`: all batches are one call.
        """
        source, validation = in_graph(source), self.validation_start()
        size = num_batches if at_batch is None else self.model.model.steps_per_execution
        at_once = num_batches if self.model.evaluates_in_order else size
        with telling_of_the_end("`validation_steps`"):
            for first in range(0, num_batches, at_once):
                told = at_batch is not None and at_once == size
                with at_batch(first, first + size - 1) if told else contextlib.nullcontext():
                    count = min(at_once, num_batches - first)
                    numbers = map(tf.constant, (first, count))
                    validation = self._validate_batches(source, *numbers, training, validation)
                if at_batch is not None and self.replicas.any(self.model.model.stop_evaluating):
                    break
        if at_batch is not None and at_once != size:  # One call ran them all.
            for first in range(0, num_batches, size):
                with at_batch(first, first + size - 1):
                    pass
        return validation

    def validation_start(self):
        """The `Validation` of no batches."""
        model = self.model
        return Validation(
            [tf.zeros_like(v) for v in model.weights + model.statistics],
            [v.read_value() for v in model.counters],
            tf.zeros([0], "float64"),
            tf.zeros([0], "float64"),
        )

    def _validate_in_graph(self, source, first, count, training, validation):
        """A `Validation` and what `count` batches from the `first` one add to it; in a graph."""
        state = [v.read_value() for v in self.model.weights + self.model.statistics]
        validate = self._in_order if self.model.evaluates_in_order else self._one_by_one
        sums, counters, losses, weights = validate(
            source, first, count, training, state, validation.counters
        )
        self.model.keep_metrics(counters)
        return Validation(
            [a + b for a, b in zip(validation.gradients, sums)],
            counters,
            tf.concat([validation.losses, losses], 0),
            tf.concat([validation.weights, weights], 0),
        )

    def _one_by_one(self, source, first, count, training, state, counters):
        """Batches that do not depend on each other: one gradient per batch."""

        def one_batch(i, sums, counters):
            batch = get_batch(source, first + i)
            weight = keras_models.batch_size(batch[0])

            def of_rows(rows):
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(state)
                    loss, outputs, _, after = self._validation_loss(rows, training, state, counters)
                    check_unmasked(rows, outputs, self._sums_losses)
                    is_sum = self._sums_losses and not loss.shape.rank
                    part = rows.part_of_sum if is_sum else rows.part_of_mean
                    mean = part(tf.reduce_mean(loss))
                    weighted = self.hyper_optimizer.scale_loss(tf.cast(weight, loss.dtype) * mean)
                gradients = self._unscaled(tape.gradient(weighted, state, None, "zero"))
                told = rows.in_place(loss) if loss.shape.rank else mean
                outputs = tf.nest.map_structure(rows.in_place, outputs)
                return mean, told, outputs, gradients, self._counters_after(rows, counters, after)

            mean, told, outputs, gradients, counters = self.replicas.run_and_sum(of_rows, batch)
            self.model.update_metrics(batch, told, outputs)
            sums = [a + b for a, b in zip(sums, gradients)]
            # The weight of a batch is that of Keras's loss tracker.
            return mean, weight, sums, counters

        zeros = [tf.zeros_like(s) for s in state]
        losses, weights, sums, counters = _over_batches(count, one_batch, zeros, counters)
        return sums, counters, losses, weights

    def _in_order(self, source, first, count, training, state, counters):
        """Batches that change the statistics for the next one: one gradient of their sum."""
        num_weights = len(self.model.weights)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(state)

            def one_batch(i, total, statistics, counters):
                present = [*state[:num_weights], *statistics]
                batch = get_batch(source, first + i)
                loss, outputs, statistics, counters = self._validation_loss(
                    WholeBatch(batch), training, present, counters
                )
                self.model.update_metrics(batch, loss, outputs)
                loss, weight = tf.reduce_mean(loss), keras_models.batch_size(batch[0])
                total += tf.cast(weight, self.dtype) * tf.cast(loss, self.dtype)
                return loss, weight, total, statistics, counters

            losses, weights, total, _, counters = _over_batches(
                count, one_batch, tf.zeros((), self.dtype), state[num_weights:], counters
            )
            scaled = self.hyper_optimizer.scale_loss(total)
        gradients = self._unscaled(tape.gradient(scaled, state, None, "zero"))
        return gradients, counters, losses, weights

    def _unscaled(self, gradients):
        """The gradients of a loss from those of the scaled one, dense."""
        factor = self.hyper_optimizer.optimizer.loss_scale_factor
        gradients = map(tf.convert_to_tensor, gradients)
        return list(gradients) if factor is None else [g / factor for g in gradients]

    def _validation_loss(self, rows, training, state, counters):
        """`(loss, outputs, statistics, counters)` on the rows of a replica."""
        number = len(self.model.weights)
        return self.model.validation_loss(
            state[:number],
            state[number:],
            self._counters_of(rows, counters),
            rows.batch,
            training,
            rows.share if self._sums_losses else None,
        )


class Validation(NamedTuple):
    """The validation losses of some batches, and the sum of their gradients.

    A batch is weighted by its number of examples, as in `model.evaluate`.
    """

    gradients: list  # By weights and statistics: sums of weighted gradients.
    counters: list
    losses: tf.Tensor  # Float64 `[batches]`.
    weights: tf.Tensor  # Float64 `[batches]`.

    def loss_and_error(self):
        """`(loss, error)`: the weighted mean and its standard error, `None` for one batch."""
        losses, shares = self.losses.numpy(), self.weights.numpy() / self.weights.numpy().sum()
        loss, number = np.sum(shares * losses), len(losses)
        if number < 2:
            return float(loss), None
        scatter = np.sum(np.square(shares * (losses - loss)))
        return float(loss), float(np.sqrt(scatter * number / (number - 1)))

    def mean_gradients(self):
        """The gradient of the loss, a list of tensors."""
        total = tf.reduce_sum(self.weights)
        return [g / tf.cast(total, g.dtype) for g in self.gradients]


def _over_batches(count, one_batch, *carried):
    """Calls `one_batch(i, *carried) → (loss, weight, *carried)` for every batch; in a graph.

    Returns `(losses, weights, *carried)`, the first two float64 `[count]`.
    """
    arrays = [tf.TensorArray("float64", count, element_shape=[]) for _ in range(2)]

    def body(i, arrays, *carried):
        loss, weight, *carried = one_batch(i, *carried)
        values = loss, weight
        arrays = [a.write(i, tf.cast(v, "float64")) for a, v in zip(arrays, values)]
        return i + 1, arrays, *carried

    _, arrays, *carried = tf.while_loop(
        lambda i, *_: i < count,
        body,
        [tf.constant(0), arrays, *carried],
        parallel_iterations=1,
    )
    return *(array.stack() for array in arrays), *carried
