"""The compiled inner loop of forward mode: state and tangents carried forward.

State and tangents live in variables between calls, so that a run can be stopped, saved and
continued after any call. One inner step has two stages, as in Keras's own optimizers: the
loss gradient and its Jacobian-vector products; then the optimizer's update and its own.
"""

import numpy as np
import tensorflow as tf

from keras_fds import _data
from keras_fds._compilation import compiled
from keras_fds._divergence import steps_while_sound
from keras_fds._inner_step import InnerStep, State
from keras_fds._tangents import jacobian_vector_products


class Unroll:
    """Unrolls the training of a compiled model and differentiates through it.

    Tangent k belongs to one bucket. Tangents are ordered by the step at which their bucket
    opens, so that those open at a step are a prefix; the others are zero and skipped.

    Args:
        model: A built model compiled with a `HyperOptimizer`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
    """

    mode = "forward"

    def __init__(self, model, batch):
        self.step = InnerStep(model, batch)
        self.model, self.optimizer = self.step.model, self.step.optimizer
        self.hyper_optimizer = model.optimizer
        self.num_tangents = sum(h.num_buckets for h in self.hyper_optimizer.hyperparameters)
        groups = self.step.variables.differentiable if self.num_tangents else ([], [], [])
        self.tangents = tf.nest.map_structure(
            lambda s: tf.Variable(
                tf.zeros([self.num_tangents, *s.shape], s.dtype), trainable=False
            ),
            groups,
        )
        self._run = compiled(self._run_in_graph)
        self._products = compiled(self._products_in_graph)
        self._order = tf.Variable(np.arange(self.num_tangents), trainable=False)
        self._opening = tf.Variable(np.zeros(self.num_tangents, "int64"), trainable=False)
        # The hyperparameter that each bucket belongs to.
        numbers = [h.num_buckets for h in self.hyper_optimizer.hyperparameters]
        self._owners = np.repeat(np.arange(len(numbers)), numbers)

    def reset(self, horizon):
        """Fresh optimizer slots and zero tangents, for a horizon of that many inner steps."""
        hyperparameters = self.hyper_optimizer.hyperparameters
        self.horizon = int(horizon)
        self.step.reset(self.horizon)
        for tangent in tf.nest.flatten(self.tangents):
            tangent.assign(tf.zeros_like(tangent))
        if self.num_tangents:
            opening = np.concatenate([h.opening_steps(horizon) for h in hyperparameters])
            order = np.argsort(opening, kind="stable")
            self._order.assign(order)
            self._opening.assign(opening[order])

    @property
    def carried(self):
        """All variables that a run changes beside those of model and optimizer, a list."""
        return tf.nest.flatten((self.tangents, list(self.step.watch.seen)))

    # -------------------------------------------------------------------------- training
    def run(self, source, position, inner_step, count):
        """Runs `count` inner steps, or fewer when the run is given up (`_divergence`).

        Args:
            source: Where batches come from, see `_data.take`.
            position: Number of the first batch in the source.
            inner_step: The first inner step, counted from the start of the horizon.
            count: How many steps.

        Returns:
            `(steps, sound)`: steps done, and whether the run was not given up.
        """
        arguments = (tf.constant(n, "int64") for n in (position, inner_step, count, self.horizon))
        with _data.telling_of_the_end("`steps_per_epoch`"):
            steps, sound = self._run(source, *arguments)
        return int(steps), bool(sound)

    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i):
            return [self._step(_data.take(source, position + i), inner_step + i, horizon)]

        return steps_while_sound(count, one_step, watch=self.step.watch)

    def _step(self, batch, inner_step, horizon):
        """One inner step; returns the training loss."""
        state = self.step.read()
        hyperparameters = self.step.hyperparameters(inner_step, horizon)

        def plain():
            return self.step(state, hyperparameters, batch)

        def with_tangents():
            rates = self._hyperparameter_tangents(inner_step, horizon, moving)
            return self._step_with_tangents(state, hyperparameters, batch, moving, rates)

        if not self.num_tangents:
            after, loss, outputs = plain()
        else:
            moving = self._moving(inner_step, horizon)
            if self.hyper_optimizer.pruning:
                after, loss, outputs = tf.cond(tf.size(moving) > 0, with_tangents, plain)
            else:
                after, loss, outputs = with_tangents()
        self.step.assign(after)
        self.step.model.update_metrics(batch, loss, outputs)
        return loss

    def _step_with_tangents(self, state, hyperparameters, batch, moving, rates):
        of_weights, of_statistics, of_slots = tf.nest.map_structure(
            lambda tangent: tf.gather(tangent, moving), self.tangents
        )
        (of_model, model_rates), (of_optimizer, optimizer_rates) = zip(
            self.step.by_stage(hyperparameters), self.step.by_stage(rates)
        )
        (gradients, statistics), (loss, outputs, counters), products = self._push(
            self.step.gradient_stage(state, batch),
            (state.weights, state.statistics, of_model),
            (of_weights, of_statistics, model_rates),
        )
        of_gradients, of_statistics = products
        (weights, slots), optimizer_counters, (of_weights, of_slots) = self._push(
            self.step.update_stage(state),
            (state.weights, state.slots, of_optimizer, gradients),
            (of_weights, of_slots, optimizer_rates, self._clipped(of_gradients)),
        )
        after = State(weights, statistics, slots, counters, optimizer_counters)
        new_tangents = tf.nest.flatten((of_weights, of_statistics, of_slots))
        for variable, value in zip(tf.nest.flatten(self.tangents), new_tangents):
            variable.scatter_update(tf.IndexedSlices(value, moving))
        return after, loss, outputs

    def _push(self, function, primals, tangents):
        size = self.hyper_optimizer.tangents_per_pass
        return jacobian_vector_products(function, primals, tangents, size)

    def _moving(self, inner_step, horizon):
        """The tangents that move at a step: those open, but for what pruning skips."""
        is_moving = self._opening <= inner_step
        if self.hyper_optimizer.pruning:
            kept = [
                self.hyper_optimizer.pruning.keeps(h, inner_step, horizon)
                for h in self.hyper_optimizer.hyperparameters
            ]
            is_moving &= tf.gather(tf.stack(kept), tf.gather(self._owners, self._order))
        return tf.where(is_moving)[:, 0]

    def _hyperparameter_tangents(self, inner_step, horizon, moving):
        """`{name: [moving]}`, one-hot: the bucket that the step falls in moves by itself."""
        positions = self.hyper_optimizer.buckets_at(inner_step, horizon)
        order, dtype = tf.gather(self._order, moving), self.step.dtype
        return {name: tf.cast(order == position, dtype) for name, position in positions.items()}

    def _clipped(self, tangents):
        bound = self.hyper_optimizer.tangent_clipvalue
        if bound is None:
            return tangents
        return [tf.clip_by_value(tangent, -bound, bound) for tangent in tangents]

    # ------------------------------------------------------------------------ validation
    def validate(self, source, num_batches, training=False, at_batch=None):
        """The validation loss and its hypergradients at the present state.

        Args:
            source: Where batches come from.
            num_batches: How many to average over, weighted by their examples.
            training: Whether the model runs in training mode.
            at_batch: See `InnerStep.validate`.

        Returns:
            `(loss, hypergradients)`: a float and a float64 array `[total_buckets]`, in the
            optimizer's order, each the mean over the steps of its bucket of the derivative
            by the value's coordinate. `validation_error` is then the loss's standard error over
            the batches, NaN for one batch.
        """
        validation = self.step.validate(source, num_batches, training, at_batch)
        loss, self.validation_error = validation.loss_and_error()
        hypergradients = np.zeros(self.num_tangents)
        products = self._products(validation.mean_gradients())
        hypergradients[self._order.numpy()] = products.numpy()
        return loss, self.hyper_optimizer.means_over_buckets(hypergradients, self.horizon)

    def _products_in_graph(self, gradients):
        products = tf.zeros([self.num_tangents], "float64")
        of_weights, of_statistics, _ = self.tangents
        for tangent, gradient in zip(of_weights + of_statistics, gradients):
            rows = tf.reshape(tangent, [self.num_tangents, -1])
            product = tf.linalg.matvec(rows, tf.reshape(gradient, [-1]))
            products += tf.cast(product, "float64")
        return products
