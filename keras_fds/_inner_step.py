"""One step of training as pure functions, and the state that it moves.

What forward and adjoint mode share: both differentiate the two stages of this step, and both
take the gradient of this validation loss.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_fds import _data, _models, _stateless
from keras_fds._divergence import LossWatch
from keras_fds._tangents import always_alike


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
    """The training step of a model that is compiled with a `HyperOptimizer`.

    Args:
        model: A compiled model; it is built here.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
    """

    def __init__(self, model, batch):
        self.hyper_optimizer = model.optimizer
        _models.build(model, batch)
        self.model = _stateless.StatelessModel(model, batch, self.hyper_optimizer.model_names)
        self.optimizer = _stateless.StatelessOptimizer(
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
        self.watch = LossWatch()
        self._gradients = always_alike(self.model.gradients)

    def reset(self, horizon):
        """Fresh optimizer slots, for a run of that many inner steps."""
        self.hyper_optimizer.reset_slots()
        self.hyper_optimizer.horizon = horizon
        self.watch.reset()

    def read(self):
        """The present `State`, as tensors."""
        return State(*([v.read_value() for v in group] for group in self.variables))

    def assign(self, state):
        """Makes a `State` of tensors the present one."""
        for variable, value in zip(tf.nest.flatten(self.variables), tf.nest.flatten(state)):
            variable.assign(value)

    def hyperparameters(self, inner_step, horizon):
        """`{name: scalar tensor}` at a step."""
        return self.hyper_optimizer.values_at(inner_step, horizon, self.dtype)

    def by_stage(self, hyperparameters):
        """Those of the gradient stage, and those of the update stage."""
        names = self.hyper_optimizer.model_names
        rest = {name: v for name, v in hyperparameters.items() if name not in names}
        return {name: hyperparameters[name] for name in names}, rest

    def gradient_stage(self, state, batch):
        """`(weights, statistics, hyperparameters) → ((gradients, statistics), (loss, outputs,
        counters))`."""

        def stage(weights, statistics, hyperparameters):
            return self._gradients(weights, statistics, state.counters, hyperparameters, batch)

        return stage

    def update_stage(self, state):
        """`(weights, slots, hyperparameters, gradients) → ((weights, slots), counters)`."""

        def stage(weights, slots, hyperparameters, gradients):
            return self.optimizer.update(
                *(weights, slots, state.optimizer_counters, hyperparameters, gradients),
                self.model.connected,
            )

        return stage

    def __call__(self, state, hyperparameters, batch):
        """Both stages: `(state, loss, outputs)` after the step."""
        of_model, of_optimizer = self.by_stage(hyperparameters)
        (gradients, statistics), (loss, outputs, counters) = self.gradient_stage(state, batch)(
            state.weights, state.statistics, of_model
        )
        (weights, slots), optimizer_counters = self.update_stage(state)(
            state.weights, state.slots, of_optimizer, gradients
        )
        after = State(weights, statistics, slots, counters, optimizer_counters)
        return after, loss, outputs

    def validation_gradients(self, source, num_batches, training):
        """The validation loss and its gradient by the present state; in a graph.

        Returns:
            `(loss, error, gradients)`: a float64 scalar, its standard error over the batches (NaN
            for one batch), and a list of tensors, one for each of the weights and statistics;
            loss and gradients are means over the batches.
        """
        model = self.model
        state = [v.read_value() for v in model.weights + model.statistics]
        num_weights = len(model.weights)
        counters = [v.read_value() for v in model.counters]

        def one_batch(i, losses, sums, counters):
            batch = _data.take(source, i)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(state)
                loss, outputs, counters = model.validation_loss(
                    state[:num_weights], state[num_weights:], counters, batch, training
                )
            gradients = tape.gradient(loss, state, unconnected_gradients="zero")
            sums = [a + tf.convert_to_tensor(b) for a, b in zip(sums, gradients)]
            model.update_metrics(batch, loss, outputs)
            losses = losses.write(tf.cast(i, "int32"), tf.cast(loss, "float64"))
            return i + 1, losses, sums, counters

        _, losses, sums, _ = tf.while_loop(
            lambda i, *_: i < num_batches,
            one_batch,
            [
                tf.constant(0, "int64"),
                tf.TensorArray("float64", tf.cast(num_batches, "int32"), element_shape=[]),
                [tf.zeros_like(s) for s in state],
                counters,
            ],
            parallel_iterations=1,
        )
        count = tf.cast(num_batches, "float64")
        losses = losses.stack()
        loss = tf.reduce_sum(losses) / count
        error = tf.sqrt(tf.reduce_sum(tf.square(losses - loss)) / (count - 1) / count)
        return loss, error, [s / tf.cast(count, s.dtype) for s in sums]
