"""The compiled inner loop of forward mode: state and tangents carried forward.

State and tangents are kept in variables between calls, so a run can be stopped, saved and
continued after any call. An inner step has two stages, as in Keras: the loss gradient, with its
Jacobian-vector products; then the optimizer's update, with its own.
"""

import os

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import size_in_bytes
from keras_fds.differentiation.inner_step import State
from keras_fds.differentiation.jacobian_products import jacobian_vector_products
from keras_fds.differentiation.mode import Mode
from keras_fds.internals import tf_compilation
from keras_fds.numbers import number
from keras_fds.schedules import blend


def memory_of_machine():
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@keras.saving.register_keras_serializable("keras_fds")
class Forward(Mode):
    """Forward mode: a tangent for each bucket is carried along with the state.

    Time and memory grow with the number of values; memory does not grow with the horizon. Each
    tangent belongs to one bucket. Tangents are ordered by the step at which their bucket opens, so
    the tangents that are open at a step are a prefix. The others are zero and are skipped.

    Args:
        tangent_chunk_size: Number of tangents that are pushed through a training step at once.
            Fewer need less memory and more time. Defaults to `None`, all.
        tangent_clipvalue: When set, the gradient's tangents (the products H·Z of the paper) are
            clipped elementwise to ±`tangent_clipvalue`; the hypergradients are then no longer
            exact. Defaults to `None`. (The gradient itself is clipped by the wrapped optimizer's
            `clipvalue`.)

    Raises:
        ValueError: When `tangent_chunk_size` is not a whole number of at least 1, or
            `tangent_clipvalue` is not positive.

    Example:

    >>> mode = keras_fds.differentiation.Forward(tangent_chunk_size=10)
    >>> keras_fds.fit(model, x, y, validation_split=0.05, differentiation=mode)

    Reference: Micaelli & Storkey (2021), section 4 and algorithm 1.
    """

    name = "forward"

    def __init__(
        self, tangent_chunk_size: int | None = None, tangent_clipvalue: float | None = None
    ) -> None:
        self.tangent_chunk_size = number(
            "tangent_chunk_size", tangent_chunk_size, least=1, whole=True, optional=True
        )
        self.tangent_clipvalue = number(
            "tangent_clipvalue", tangent_clipvalue, above=0, optional=True
        )

    @property
    def compiled_options(self):
        return self.tangent_chunk_size, self.tangent_clipvalue

    def build(self):
        super().build()
        self.num_tangents = self.buckets.size
        self.tangents = None  # Made when they are needed.
        self._products = tf_compilation.compiled(self._products_in_graph)
        self._order = tf.Variable(np.arange(self.num_tangents), trainable=False)
        self._opening = tf.Variable(np.zeros(self.num_tangents, "int64"), trainable=False)

    def cost(self, horizon):
        # A tangent costs 1.3 to 2.2 plain steps; 1.6 with three tangents on a small network, where
        # the modes cost about the same (docs/benchmarks.md).
        return 1.0 + 1.6 * float(np.sum(1.0 - self.buckets.opening_steps(horizon) / horizon))

    def work(self, horizon):
        opening = self.buckets.opening_steps(horizon)
        return np.sum(opening[:, None] <= np.arange(horizon), axis=0)

    @property
    def _bytes_of_tangents(self):
        return self.num_tangents * size_in_bytes(self.step.variables.differentiable)

    def memory(self, horizon):
        return [*super().memory(horizon), ("tangents", self._bytes_of_tangents)]

    def check_memory(self, batches, horizon):
        """Raises a `ValueError` when the tangents need more memory than the machine has."""
        needed, there = self._bytes_of_tangents, memory_of_machine()
        if needed > there:
            raise ValueError(
                f"Forward mode carries {self.num_tangents} tangents, one for each value, which "
                f"need {needed / 2**30:.3g} GiB; this machine has {there / 2**30:.3g}. Use "
                "differentiation='reverse', whose memory and cost do not grow with the number of "
                "values, or learn fewer."
            )

    def reset(self, horizon, divergence_factor=None, fresh_slots=True):
        """Begins a run with zero tangents; see `Mode`."""
        super().reset(horizon, divergence_factor, fresh_slots)
        self._make_tangents()
        for tangent in tf.nest.flatten(self.tangents):
            tangent.assign(tf.zeros_like(tangent))
        opening = self.buckets.opening_steps(horizon)
        order = np.argsort(opening, kind="stable")
        self._order.assign(order)
        self._opening.assign(opening[order])

    def _make_tangents(self):
        if self.tangents is not None:
            return
        groups = self.step.variables.differentiable if self.num_tangents else ([], [], [])
        self.tangents = tf.nest.map_structure(
            lambda s: tf.Variable(
                tf.zeros([self.num_tangents, *s.shape], s.dtype), trainable=False
            ),
            groups,
        )

    @property
    def checkpoint_variables(self):
        self._make_tangents()
        return [*tf.nest.flatten(self.tangents), *super().checkpoint_variables]

    @property
    def protected_variables(self):
        # Forward mode is right about values that carry no derivative, whoever assigns them.
        state = {id(v) for v in tf.nest.flatten(self.step.variables.differentiable)}
        model = self.step.model.model
        return [v for v in (*model.variables, *self.outside_variables) if id(v.value) in state]

    # -------------------------------------------------------------------------- training
    def _step(self, batch, inner_step, horizon):
        if not self.num_tangents:
            return super()._step(batch, inner_step, horizon)
        moving = tf.where(self._opening <= inner_step)[:, 0]
        after, loss, outputs = self._step_with_tangents(
            self.step.read(),
            self.step.hyperparameters(inner_step, horizon),
            batch,
            moving,
            self._hyperparameter_tangents(inner_step, horizon, moving),
        )
        self.step.assign(after)
        self.step.model.update_metrics(batch, loss, outputs)
        return loss

    def _step_with_tangents(self, state, hyperparameters, batch, moving, rates):
        of_weights, of_statistics, of_slots = self._carried(moving)
        (of_model, model_rates), (of_optimizer, optimizer_rates) = zip(
            self.step.by_stage(hyperparameters), self.step.by_stage(rates)
        )
        (gradients, statistics), extra, products = self.step.gradient_products(
            state,
            batch,
            (state.weights, state.statistics, of_model),
            (of_weights, of_statistics, model_rates),
            self.tangent_chunk_size,
        )
        loss, outputs, counters, slices = extra
        of_gradients, of_statistics = products or (None, None)
        (weights, slots), optimizer_counters, (of_weights, of_slots) = jacobian_vector_products(
            self.step.update_stage(state, slices),
            (state.weights, state.slots, of_optimizer, gradients),
            (of_weights, of_slots, optimizer_rates, self._clipped(of_gradients)),
            self.tangent_chunk_size,
        )
        after = State(weights, statistics, slots, counters, optimizer_counters)
        for variables, values in zip(self.tangents, (of_weights, of_statistics, of_slots)):
            for variable, value in zip(variables, values or ()):
                variable.scatter_update(tf.IndexedSlices(value, moving))
        return after, loss, outputs

    def _carried(self, moving):
        """The tangents that go through a step, three lists; `None` where they are zero."""
        return tf.nest.map_structure(lambda tangent: tf.gather(tangent, moving), self.tangents)

    def _hyperparameter_tangents(self, inner_step, horizon, moving):
        """`{name: [moving, *shape]}`, rows of the sharing matrix: one-hot in a step's bucket."""
        order, found = tf.gather(self._order, moving), {}
        rows = self.buckets.shares(inner_step, horizon).values()
        for h, row in zip(self.buckets.hyperparameters, rows):
            *neighbours, fraction = row
            lower, upper = (
                tf.cast(order[:, None] == position + np.arange(h.size), "float64")
                for position in neighbours
            )
            of_elements = tf.cast(blend(lower, upper, fraction), self.step.dtype)
            found[h.name] = tf.reshape(of_elements, [-1, *h.shape])
        return found

    def _clipped(self, tangents):
        bound = self.tangent_clipvalue
        if bound is None:
            return tangents
        return [tf.clip_by_value(tangent, -bound, bound) for tangent in tangents]

    # -------------------------------------------------------------------- hypergradients
    def hypergradients(self):
        hypergradients = np.zeros(self.num_tangents)
        products = self._products(self.validation_gradients)
        hypergradients[self._order.numpy()] = products.numpy()
        return hypergradients

    def get_config(self):
        return {
            "tangent_chunk_size": self.tangent_chunk_size,
            "tangent_clipvalue": self.tangent_clipvalue,
        }

    def _products_in_graph(self, gradients):
        products = tf.zeros([self.num_tangents], "float64")
        of_weights, of_statistics, _ = self.tangents
        for tangent, gradient in zip(of_weights + of_statistics, gradients):
            rows = tf.reshape(tangent, [self.num_tangents, -1])
            product = tf.linalg.matvec(rows, tf.reshape(gradient, [-1]))
            products += tf.cast(product, "float64")
        return products
