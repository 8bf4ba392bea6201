"""Greedy hyperparameter learning: the hyperparameters move while the weights train."""

import json
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import get_batch, in_graph
from keras_fds.differentiation.divergence import steps_while_ok
from keras_fds.differentiation.forward import Forward


class OnlineSource(NamedTuple):
    """Where a run takes its batches from.

    `held_out` is the source of `num_held_out` validation batches, which come in turn. When it is
    `None`, hypergradients are those of the training loss.
    """

    train: object
    held_out: object
    num_held_out: tf.Tensor

    @classmethod
    def of(cls, train, held_out=None, num_held_out=0):
        """The source as compiled functions take it."""
        return cls(in_graph(train), held_out, tf.constant(num_held_out, "int32"))


class Online(Forward):
    """Forward mode with one value for every hyperparameter, which moves before every step.

    With the state s, the values λ, the tangents Z = ds/dλ and the loss L of a validation batch,
    or of the next training batch, a step is

        h = ∂L/∂s · Z
        λ ← λ moved by the outer optimizer along h, kept in its range
        s ← Φ(s, λ)
        Z ← μ ∂Φ/∂s · Z + ∂Φ/∂λ

    `hypergradients` are those of the last validation by the present values.

    Args:
        tangent_decay: The number μ, from 0 to 1.
        outer_optimizer: The Keras optimizer that moves the coordinates of the values. It counts
            them in units of the hyperparameters' `step_size`.

    Attributes:
        values: A variable `[horizon, hyperparameters]`: what every step so far has used.
        slopes: Another one: h, by the coordinates, of every step.
    """

    name = "online"

    def __init__(self, tangent_decay, outer_optimizer):
        super().__init__()
        self.tangent_decay, self.outer_optimizer = tangent_decay, outer_optimizer

    @property
    def compiled_options(self):
        config = keras.saving.serialize_keras_object(self.outer_optimizer)
        return self.tangent_decay, json.dumps(config, sort_keys=True, default=str)

    def build(self):
        super().build()
        self._move = keras.Variable(np.zeros(self.num_tangents), dtype="float64")
        kind, config = type(self.outer_optimizer), self.outer_optimizer.get_config()
        self.outer_optimizer = kind.from_config(config)
        self.outer_optimizer.build([self._move])
        self._fresh = [variable.numpy() for variable in self.outer_optimizer.variables]
        self.values, self.slopes = (
            tf.Variable(np.zeros([0, self.num_tangents]), shape=[None, None], trainable=False)
            for _ in range(2)
        )

    def reset(self, horizon, divergence_factor=None, fresh_slots=True):
        """Begins a run with zero tangents; see `Mode`."""
        super().reset(horizon, divergence_factor, fresh_slots)
        for variable, value in zip(self.outer_optimizer.variables, self._fresh):
            variable.assign(value)
        for variable in (self.values, self.slopes):
            variable.assign(np.zeros([self.horizon, self.num_tangents]))

    def cost(self, horizon):
        # The gradient of one more batch, and forward mode's tangents, or none of the state.
        return 2.0 if self.tangent_decay == 0 else 1.0 + super().cost(horizon)

    # -------------------------------------------------------------------------- training
    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i):
            batch = get_batch(source.train, position + i)
            if not self.num_tangents:
                return [self._step(batch, inner_step + i, horizon)]
            if source.held_out is None:
                slopes = self._slopes(batch, training=True)
            else:
                turn = (inner_step + i) % source.num_held_out
                slopes = self._slopes(get_batch(source.held_out, turn), training=False)
            self._move_along(slopes)
            self._keep(inner_step + i, slopes)
            return [self._step(batch, inner_step + i, horizon)]

        return steps_while_ok(count, one_step, detector=self.step.detector)

    def _slopes(self, batch, training):
        """h, the derivatives of the loss of a batch by the coordinates."""
        state = self.step.read()
        differentiable = state.weights + state.statistics
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(differentiable)
            loss, *_ = self.step.model.validation_loss(
                state.weights, state.statistics, state.counters, batch, training
            )
            loss = tf.reduce_mean(loss)
        gradients = tape.gradient(loss, differentiable, unconnected_gradients="zero")
        by_values = self._products_in_graph(map(tf.convert_to_tensor, gradients))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            coordinates = self._coordinates.read_value()
            tape.watch(coordinates)
            values = self._values_at(coordinates)
        return tape.gradient(values, coordinates, by_values)

    def _move_along(self, slopes):
        """Moves the coordinates by a step of the outer optimizer; NaN counts as zero."""
        units = self.buckets.first_steps()
        known = tf.where(tf.math.is_finite(slopes), slopes, 0.0)
        self._move.assign(tf.zeros_like(slopes))
        self.outer_optimizer.apply([known * units], [self._move])
        moved = self._coordinates.read_value() + units * self._move.value
        self._coordinates.assign(tf.clip_by_value(moved, *self.buckets.ranges))

    def _keep(self, inner_step, slopes):
        """Keeps what a step uses."""
        rows = [[inner_step]]
        values = self._values_at(self._coordinates.read_value())
        self.values.scatter_nd_update(rows, [values])
        self.slopes.scatter_nd_update(rows, [slopes])

    def _carried(self, part, moving):
        if self.tangent_decay == 0:
            return None, None, None
        carried = super()._carried(part, moving)
        return tf.nest.map_structure(lambda tangent: self.tangent_decay * tangent, carried)

    @property
    def _coordinates(self):
        coordinates, *_ = self.hyper_optimizer.schedule_variables
        return coordinates.value

    def _values_at(self, coordinates):
        """The values at coordinates, float64 tensors `[hyperparameters]`."""
        hyperparameters = self.buckets.hyperparameters
        return tf.stack([h.values(coordinates[k]) for k, h in enumerate(hyperparameters)])

    def get_config(self):
        return {"tangent_decay": self.tangent_decay, "outer_optimizer": self.outer_optimizer}
