"""The compiled inner loop of forward mode: state and tangents carried forward.

State and tangents are kept in variables between calls, so a run can be stopped, saved and
continued after any call. An inner step has two stages, as in Keras: the loss gradient, with its
Jacobian-vector products; then the optimizer's update, with its own.
"""

import os
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import size_in_bytes
from keras_fds.differentiation.inner_step import State
from keras_fds.differentiation.jacobian_products import jacobian_vector_products
from keras_fds.differentiation.mode import Mode
from keras_fds.differentiation.tangents import Tangents
from keras_fds.internals import tf_compilation
from keras_fds.numbers import number


def memory_of_machine():
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@keras.saving.register_keras_serializable("keras_fds")
class Forward(Mode):
    """Forward mode: a tangent for each bucket is carried along with the state.

    Time and memory grow with the number of values; memory does not grow with the horizon. Each
    tangent belongs to one bucket. Until its bucket opens it is zero and is skipped.

    Args:
        tangent_chunk_size: Number of tangents that are pushed through a training step at once.
            Fewer need less memory and more time. Defaults to `None`, all.
        tangent_clipvalue: When set, the gradient's tangents (the products H·Z of the paper) are
            clipped elementwise to ±`tangent_clipvalue`; the hypergradients are then no longer
            exact. Defaults to `None`. (The gradient itself is clipped by the wrapped optimizer's
            `clipvalue`.)
        parallel: What the replicas of a `tf.distribute` strategy share: the examples of every
            `"batch"`, or the `"tangents"`. With the latter each replica trains on the whole batch
            and carries its share of the tangents; there is no transfer until the end of a run, and
            results are those of one device for any layer and loss. Defaults to `"batch"`.

    Raises:
        ValueError: When `tangent_chunk_size` is not a whole number of at least 1, or
            `tangent_clipvalue` is not positive, or `parallel` is unknown.

    Example:

    >>> mode = keras_fds.differentiation.Forward(tangent_chunk_size=10)
    >>> keras_fds.fit(model, x, y, validation_split=0.05, differentiation=mode)

    Reference: Micaelli & Storkey (2021), section 4 and algorithm 1.
    """

    name = "forward"

    def __init__(
        self,
        tangent_chunk_size: int | None = None,
        tangent_clipvalue: float | None = None,
        parallel: Literal["batch", "tangents"] = "batch",
    ) -> None:
        self.tangent_chunk_size = number(
            "tangent_chunk_size", tangent_chunk_size, least=1, whole=True, optional=True
        )
        self.tangent_clipvalue = number(
            "tangent_clipvalue", tangent_clipvalue, above=0, optional=True
        )
        if parallel not in ("batch", "tangents"):
            raise ValueError(
                f"`parallel` must be 'batch' or 'tangents'. Received: parallel={parallel!r}"
            )
        self.parallel = parallel

    @property
    def compiled_options(self):
        return self.tangent_chunk_size, self.tangent_clipvalue, self.parallel

    def build(self):
        super().build()
        self.num_tangents = self.buckets.size
        groups = self.step.variables.differentiable
        self.parts = [Tangents(groups, self.num_tangents)]
        if self.shares_tangents:
            self.parts = [
                Tangents(groups, self.num_tangents, number, self.replicas.count, device)
                for number, device in enumerate(self.replicas.devices, self.replicas.first)
            ]
        self._products = tf_compilation.compiled(self._products_in_graph)
        self._push = self.step.compiled(self._pushed)

    @property
    def shares_tangents(self):
        """Whether each of several replicas carries a part of the tangents."""
        return self.parallel == "tangents" and self.replicas.count > 1

    def cost(self, horizon):
        # A tangent costs 1.3 to 2.2 plain steps; 1.6 with three tangents on a small network, where
        # the modes cost about the same (docs/benchmarks.md).
        open_tangents = float(np.sum(1.0 - self.buckets.opening_steps(horizon) / horizon))
        return 1.0 + 1.6 * open_tangents / (self.replicas.count if self.shares_tangents else 1)

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
        for part in self.parts:
            part.reset(self.buckets.opening_steps(horizon))

    @property
    def tangents(self):
        """The tangents of the first device, `[number, …]` for each variable; three lists."""
        return self.parts[0].variables

    @property
    def checkpoint_variables(self):
        if self.shares_tangents and not self.replicas.is_one_process:
            return None  # Other processes have the rest.
        tangents = [part.variables for part in self.parts]
        return [*tf.nest.flatten(tangents), *super().checkpoint_variables]

    @property
    def protected_variables(self):
        # Forward mode is right about values that carry no derivative, whoever assigns them.
        state = {id(v) for v in tf.nest.flatten(self.step.variables.differentiable)}
        model = self.step.model.model
        return [v for v in (*model.variables, *self.outside_variables) if id(v.value) in state]

    # -------------------------------------------------------------------------- training
    def _step(self, batch, inner_step, horizon):
        state, results = self.step.read(), []
        hyperparameters = self.step.hyperparameters(inner_step, horizon)
        for part in self.parts:
            with tf.device(part.device):
                results.append(
                    self._step_with(part, state, hyperparameters, batch, inner_step, horizon)
                )
        after, loss, outputs = results[0]
        self.step.assign(after)
        self.step.model.update_metrics(batch, loss, outputs)
        return loss

    def _step_with(self, part, state, hyperparameters, batch, inner_step, horizon):
        """A step that also moves the tangents of a device: `(state, loss, outputs)` after it."""
        is_last = inner_step + 1 >= horizon
        if not part.number:
            return self._pure_step(state, hyperparameters, batch, is_last)
        moving = part.moving(inner_step)
        after, loss, outputs, tangents = self._push(
            state,
            hyperparameters,
            batch,
            is_last,
            self._carried(part, moving),
            part.of_hyperparameters(self.buckets, inner_step, horizon, moving, self.step.dtype),
        )
        part.keep(moving, tangents)
        return after, loss, outputs

    def _pushed(self, state, hyperparameters, batch, is_last, carried, rates):
        """A step and its Jacobian-vector products: `(state, loss, outputs, tangents)` after it.

        The tangents `carried` into it are three lists, or `None` where they are zero; `rates` are
        those of the hyperparameters.
        """
        of_weights, of_statistics, of_slots = carried
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
            self.step.update_stage(state, slices, is_last),
            (state.weights, state.slots, of_optimizer, gradients),
            (of_weights, of_slots, optimizer_rates, self._clipped(of_gradients)),
            self.tangent_chunk_size,
        )
        after = State(weights, statistics, slots, counters, optimizer_counters)
        return after, loss, outputs, (of_weights, of_statistics, of_slots)

    def _carried(self, part, moving):
        """The tangents that go through a step, three lists; `None` where they are zero."""
        return part.carried(moving)

    def _clipped(self, tangents):
        bound = self.tangent_clipvalue
        if bound is None:
            return tangents
        return [tf.clip_by_value(tangent, -bound, bound) for tangent in tangents]

    # -------------------------------------------------------------------- hypergradients
    def hypergradients(self):
        hypergradients = np.zeros(self.num_tangents)
        order = np.concatenate([part.order.numpy() for part in self.parts])
        hypergradients[order] = self._products(self.validation_gradients).numpy()
        if self.shares_tangents:
            hypergradients = self.replicas.sum_over_processes(hypergradients)
        return hypergradients

    def get_config(self):
        return {
            "tangent_chunk_size": self.tangent_chunk_size,
            "tangent_clipvalue": self.tangent_clipvalue,
            "parallel": self.parallel,
        }

    def _products_in_graph(self, gradients):
        """The products of the tangents here with gradients by the state, in their order."""
        gradients = list(gradients)
        products = [part.products(gradients) for part in self.parts]
        return products[0] if len(products) == 1 else tf.concat(products, 0)
