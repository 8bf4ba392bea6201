"""The compiled inner loop: weights, optimizer slots and tangents carried forward.

State and tangents live in variables between calls, so that a run can be stopped, saved and
continued after any call. One inner step has two stages, as in Keras's own optimizers: the
loss gradient and its Jacobian-vector products; then the optimizer's update and its own.
"""

import numpy as np
import tensorflow as tf

from keras_fds import _data, _models, _stateless
from keras_fds._tangents import jacobian_vector_products


class Unroll:
    """Unrolls the training of a compiled model and differentiates through it.

    Tangent k belongs to one bucket. Tangents are ordered by the step at which their bucket
    opens, so that those open at a step are a prefix; the others are zero and skipped.

    Args:
        model: A built model compiled with a `HyperOptimizer`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
    """

    def __init__(self, model, batch):
        self.hyper_optimizer = model.optimizer
        _models.build(model, batch)
        self.model = _stateless.StatelessModel(model, batch, self.hyper_optimizer.model_names)
        self.optimizer = _stateless.StatelessOptimizer(
            self.hyper_optimizer.optimizer, self.hyper_optimizer.multiplied(model)
        )
        self.buckets = [h.num_buckets for h in self.hyper_optimizer.hyperparameters]
        self.num_tangents = sum(self.buckets)
        state = self.model.weights + self.model.statistics + self.optimizer.slots
        if not self.num_tangents:
            state = []
        self.tangents = [
            tf.Variable(tf.zeros([self.num_tangents, *s.shape], s.dtype), trainable=False)
            for s in state
        ]
        self._run, self._validate = (
            _compiled(self._run_in_graph),
            _compiled(self._validate_in_graph),
        )
        self._order = tf.Variable(np.arange(self.num_tangents), trainable=False)
        self._opening = tf.Variable(np.zeros(self.num_tangents, "int64"), trainable=False)

    def reset(self, horizon):
        """Fresh optimizer slots and zero tangents, for a horizon of that many inner steps."""
        hyperparameters = self.hyper_optimizer.hyperparameters
        self.hyper_optimizer.reset_slots()
        self.hyper_optimizer.horizon = self.horizon = int(horizon)
        for tangent in self.tangents:
            tangent.assign(tf.zeros_like(tangent))
        if self.num_tangents:
            opening = np.concatenate([h.opening_steps(horizon) for h in hyperparameters])
            order = np.argsort(opening, kind="stable")
            self._order.assign(order)
            self._opening.assign(opening[order])

    # -------------------------------------------------------------------------- training
    def run(self, source, position, inner_step, count):
        """Runs `count` inner steps, or fewer when the loss stops being finite.

        Args:
            source: Where batches come from, see `_data.take`.
            position: Number of the first batch in the source.
            inner_step: The first inner step, counted from the start of the horizon.
            count: How many steps.

        Returns:
            `(steps, finite)`: steps done, and whether the last loss was finite.
        """
        arguments = (tf.constant(n, "int64") for n in (position, inner_step, count, self.horizon))
        with _data.telling_of_the_end("`steps_per_epoch`"):
            steps, finite = self._run(source, *arguments)
        return int(steps), bool(finite)

    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i, _):
            batch = _data.take(source, position + i)
            return i + 1, tf.math.is_finite(self._step(batch, inner_step + i, horizon))

        return tf.while_loop(
            lambda i, finite: (i < count) & finite,
            one_step,
            [tf.constant(0, "int64"), tf.constant(True)],
            parallel_iterations=1,
        )

    def _step(self, batch, inner_step, horizon):
        """One inner step; returns the training loss."""
        model, optimizer = self.model, self.optimizer
        weights, statistics, slots, counters, optimizer_counters = (
            [variable.read_value() for variable in variables]
            for variables in (
                model.weights,
                model.statistics,
                optimizer.slots,
                model.counters,
                optimizer.counters,
            )
        )
        dtype = weights[0].dtype
        of_model, of_optimizer = self._by_stage(
            self.hyper_optimizer.values_at(inner_step, horizon, dtype)
        )

        def gradient_stage(weights, statistics, hyperparameters):
            return model.gradients(weights, statistics, counters, hyperparameters, batch)

        def update_stage(weights, slots, hyperparameters, gradients):
            return optimizer.update(
                weights, slots, optimizer_counters, hyperparameters, gradients, model.connected
            )

        num_open = tf.reduce_sum(tf.cast(self._opening <= inner_step, "int32"))
        tangents = self._split([tangent[:num_open] for tangent in self.tangents])
        if tangents:
            rates = self._hyperparameter_tangents(inner_step, horizon, num_open, dtype)
            model_rates, optimizer_rates = self._by_stage(rates)
        (gradients, new_statistics), (loss, outputs, new_counters), products = self._push(
            gradient_stage,
            (weights, statistics, of_model),
            tangents and (tangents[0], tangents[1], model_rates),
        )
        if tangents:
            gradient_tangents, statistics_tangents = products
            gradient_tangents = self._clipped(gradient_tangents)
            tangents = (tangents[0], tangents[2], optimizer_rates, gradient_tangents)
        (new_weights, new_slots), new_optimizer_counters, products = self._push(
            update_stage, (weights, slots, of_optimizer, gradients), tangents
        )
        _assign(
            model.weights + model.statistics + model.counters,
            new_weights + new_statistics + new_counters,
        )
        _assign(optimizer.slots + optimizer.counters, new_slots + new_optimizer_counters)
        if tangents:
            new_tangents = products[0] + statistics_tangents + products[1]
            for variable, value in zip(self.tangents, new_tangents):
                variable[:num_open].assign(value)
        model.update_metrics(batch, loss, outputs)
        return loss

    def _push(self, function, primals, tangents):
        if tangents:
            size = self.hyper_optimizer.tangents_per_pass
            return jacobian_vector_products(function, primals, tangents, size)
        return *function(*primals), None

    def _split(self, state):
        """A flat list over the whole state as `(weights, statistics, slots)`."""
        first = len(self.model.weights)
        second = first + len(self.model.statistics)
        return state and (state[:first], state[first:second], state[second:])

    def _by_stage(self, hyperparameters):
        """Those of the model and its loss, and those of the optimizer."""
        names = self.hyper_optimizer.model_names
        rest = {name: v for name, v in hyperparameters.items() if name not in names}
        return {name: hyperparameters[name] for name in names}, rest

    def _hyperparameter_tangents(self, inner_step, horizon, num_open, dtype):
        """`{name: [num_open]}`, one-hot: the bucket that the step falls in moves by itself."""
        positions = self.hyper_optimizer.buckets_at(inner_step, horizon)
        order = self._order[:num_open]
        return {name: tf.cast(order == position, dtype) for name, position in positions.items()}

    def _clipped(self, tangents):
        bound = self.hyper_optimizer.tangent_clipvalue
        if bound is None:
            return tangents
        return [tf.clip_by_value(tangent, -bound, bound) for tangent in tangents]

    # ------------------------------------------------------------------------ validation
    def validate(self, source, num_batches, training=False):
        """The validation loss and its hypergradients at the present state.

        Args:
            source: Where batches come from.
            num_batches: How many to average over.
            training: Whether the model runs in training mode.

        Returns:
            `(loss, hypergradients)`: a float and a float64 array `[total_buckets]`, in the
            optimizer's order, each the mean over the steps of its bucket of the derivative
            by the value's coordinate.
        """
        with _data.telling_of_the_end("`validation_steps`"):
            loss, products = self._validate(source, tf.constant(num_batches, "int64"), training)
        if not self.num_tangents:
            return float(loss), np.zeros(0)
        lengths = np.concatenate(
            [h.bucket_lengths(self.horizon) for h in self.hyper_optimizer.hyperparameters]
        )
        hypergradients = np.empty(self.num_tangents)
        hypergradients[self._order.numpy()] = products.numpy()
        return float(loss), hypergradients * self.hyper_optimizer.derivatives() / lengths

    def _validate_in_graph(self, source, num_batches, training):
        model = self.model
        state = [v.read_value() for v in model.weights + model.statistics]
        num_weights = len(model.weights)
        counters = [v.read_value() for v in model.counters]

        def one_batch(i, total, sums, counters):
            batch = _data.take(source, i)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(state)
                loss, outputs, counters = model.validation_loss(
                    state[:num_weights], state[num_weights:], counters, batch, training
                )
            gradients = tape.gradient(loss, state, unconnected_gradients="zero")
            sums = [a + tf.convert_to_tensor(b) for a, b in zip(sums, gradients)]
            model.update_metrics(batch, loss, outputs)
            return i + 1, total + tf.cast(loss, total.dtype), sums, counters

        _, total, sums, _ = tf.while_loop(
            lambda i, *_: i < num_batches,
            one_batch,
            [
                tf.constant(0, "int64"),
                tf.zeros((), state[0].dtype),
                [tf.zeros_like(s) for s in state],
                counters,
            ],
            parallel_iterations=1,
        )
        products = tf.zeros([self.num_tangents], "float64")
        for tangent, cotangent in zip(self.tangents, sums):
            rows = tf.reshape(tangent, [self.num_tangents, -1])
            product = tf.linalg.matvec(rows, tf.reshape(cotangent, [-1]))
            products += tf.cast(product, "float64")
        count = tf.cast(num_batches, "float64")
        return tf.cast(total, "float64") / count, products / count


def _compiled(function):
    function = tf.function(function, autograph=False, reduce_retracing=True)
    # One trace for each new model is meant; TensorFlow would warn of it from the fifth on.
    function._omit_frequent_tracing_warning = True
    return function


def _assign(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)
