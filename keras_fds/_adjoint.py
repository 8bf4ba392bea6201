"""Adjoint mode: the same hypergradients backwards, at a cost that no number of buckets changes.

The forward run keeps the state at every step, or, when that needs too much memory, at about √T
of the T steps. The sweep then goes back from the validation loss, by one vector-Jacobian product
of the inner step a step; between kept states it first runs forward again. It yields the
derivative by the hyperparameters of every single step, which buckets only sum up.

Reference: Griewank & Walther, "Evaluating Derivatives" (2008), chapter 12 (checkpointing).
"""

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_fds import _data
from keras_fds._compilation import compiled
from keras_fds._divergence import steps_while_sound
from keras_fds._inner_step import InnerStep
from keras_fds._tangents import jacobian_vector_products


class _Piece(NamedTuple):
    """The steps that one compiled call ran."""

    source: Any
    position: int
    inner_step: int
    count: int
    states: list  # At every step, `[count, …]` each, where they are kept.


class _Block(NamedTuple):
    """Steps between two checkpoints, or, where all states are kept, those of one call."""

    checkpoint: list | None  # The state at the first step.
    pieces: list


class Adjoint:
    """Unrolls the training of a compiled model, then differentiates backwards through it.

    Args:
        model: A built model compiled with a `HyperOptimizer`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        memory: Bytes that kept states may need.
    """

    mode = "adjoint"
    carried = ()  # A run that is interrupted begins anew: what it keeps is not saved.

    def __init__(self, model, batch, memory):
        self.step = InnerStep(model, batch)
        self.model, self.optimizer = self.step.model, self.step.optimizer
        self.hyper_optimizer = model.optimizer
        self.num_tangents = sum(h.num_buckets for h in self.hyper_optimizer.hyperparameters)
        self.memory = memory
        self._run = compiled(self._run_in_graph)
        self._run_keeping = compiled(self._run_keeping_in_graph)
        self._sweep = compiled(self._sweep_in_graph)
        self._run_again = compiled(self._run_keeping_in_graph)

    def states_kept(self, horizon):
        """`(number, all)`: the most states in memory at once, and whether it is every step's."""
        stride = int(np.ceil(np.sqrt(horizon)))
        size = _data.size_in_bytes(self.step.variables)
        keeps_all = size * horizon <= self.memory or horizon <= 2 * stride
        return (horizon if keeps_all else 2 * stride), keeps_all

    def check_memory(self, horizon):
        """Raises a `ValueError` when even the fewest states need more memory than allowed."""
        states, _ = self.states_kept(horizon)
        needed = states * _data.size_in_bytes(self.step.variables)
        if needed > self.memory:
            raise ValueError(
                f"Adjoint mode over {horizon} steps keeps {states} copies of the state, "
                f"{needed} bytes, beside the batches of datasets. Raise `adjoint_memory`, or use "
                f"differentiation='forward'. Left for states: {max(self.memory, 0)} bytes"
            )

    def reset(self, horizon):
        """Fresh optimizer slots and nothing kept, for a horizon of that many inner steps."""
        self.horizon = int(horizon)
        self.step.reset(self.horizon)
        _, self.keeps_all = self.states_kept(horizon)
        self.stride = int(np.ceil(np.sqrt(horizon)))
        self.blocks = []

    # -------------------------------------------------------------------------- training
    def run(self, source, position, inner_step, count):
        """Runs `count` inner steps, or fewer when the run is given up; see `Unroll`."""
        done, sound = 0, True
        while done < count and sound:
            first = inner_step + done
            wanted = count - done
            if not self.keeps_all:
                wanted = min(wanted, self.stride - first % self.stride)
            steps, sound = self._run_piece(source, position + done, first, wanted)
            done += steps
        return done, sound

    def _run_piece(self, source, position, inner_step, count):
        with _data.telling_of_the_end("`steps_per_epoch`"):
            if isinstance(source, tf.data.Iterator):
                source, position = _data.keep(source, count), 0
        # Calls may be shorter than the stride: one checkpoint serves several of them.
        if self.keeps_all or inner_step % self.stride == 0 or not self.blocks:
            state = None if self.keeps_all else tf.nest.flatten(self.step.read())
            self.blocks.append(_Block(state, []))
        run = self._run_keeping if self.keeps_all else self._run
        steps, sound, kept = run(source, *_constants(position, inner_step, count, self.horizon))
        piece = _Piece(source, position, inner_step, int(steps), kept)
        self.blocks[-1].pieces.append(piece)
        return piece.count, bool(sound)

    def _one_step(self, source, position, inner_step, horizon):
        batch = _data.take(source, position)
        hyperparameters = self.step.hyperparameters(inner_step, horizon)
        after, loss, outputs = self.step(self.step.read(), hyperparameters, batch)
        return after, loss, outputs, batch

    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i):
            after, loss, outputs, batch = self._one_step(
                source, position + i, inner_step + i, horizon
            )
            self.step.assign(after)
            self.step.model.update_metrics(batch, loss, outputs)
            return [loss]

        return *steps_while_sound(count, one_step, watch=self.step.watch), []

    def _run_keeping_in_graph(self, source, position, inner_step, count, horizon, again=False):
        """Also returns the state at every step; run again, it leaves the metrics alone."""

        def one_step(i, arrays):
            arrays = self._written(arrays, i)
            after, loss, outputs, batch = self._one_step(
                source, position + i, inner_step + i, horizon
            )
            self.step.assign(after)
            if not again:
                self.step.model.update_metrics(batch, loss, outputs)
            return loss, arrays

        watch = None if again else self.step.watch
        steps, sound, arrays = steps_while_sound(count, one_step, self._arrays(count), watch=watch)
        return steps, sound, [array.stack() for array in arrays]

    def _arrays(self, count):
        return [
            tf.TensorArray(v.dtype, tf.cast(count, "int32"), element_shape=v.shape)
            for v in tf.nest.flatten(self.step.variables)
        ]

    def _written(self, arrays, i):
        state = tf.nest.flatten(self.step.read())
        return [array.write(tf.cast(i, "int32"), value) for array, value in zip(arrays, state)]

    # ------------------------------------------------------------------------ validation
    def validate(self, source, num_batches, training=False, at_batch=None):
        """The validation loss and its hypergradients at the present state; see `Unroll`."""
        loss, per_step = self.validate_per_step(source, num_batches, training, at_batch)
        sums, steps = [], np.arange(self.horizon)
        for hyperparameter, values in zip(self.hyper_optimizer.hyperparameters, per_step.T):
            buckets = hyperparameter.bucket(steps, self.horizon)
            sums.append(np.bincount(buckets, values, hyperparameter.num_buckets))
        sums = np.concatenate([np.zeros(0), *sums])
        return loss, self.hyper_optimizer.means_over_buckets(sums, self.horizon)

    def validate_per_step(self, source, num_batches, training=False, at_batch=None):
        """The validation loss and its derivatives by the hyperparameters of every step.

        Returns:
            `(loss, derivatives)`: a float and a float64 array `[horizon, hyperparameters]`, by the
            values (not their coordinates).
        """
        validation = self.step.validate(source, num_batches, training, at_batch)
        loss, self.validation_error = validation.loss_and_error()
        gradients = validation.mean_gradients()
        cotangents = [*gradients, *(tf.zeros_like(slot) for slot in self.step.variables.slots)]
        per_step = np.zeros([self.horizon, len(self.hyper_optimizer.names)])
        after = None if self.keeps_all else self.step.read()
        for block in reversed(self.blocks):
            cotangents = self._sweep_block(block, cotangents, per_step)
        if after is not None:
            self.step.assign(after)
        return float(loss), per_step

    def _sweep_block(self, block, cotangents, per_step):
        """Cotangents at the start of a block, whose derivatives are written into `per_step`.

        States that were computed again are gone when it returns: those of one block at a time.
        """
        pieces = list(block.pieces) if self.keeps_all else self._kept_again(block)
        while pieces:
            piece = pieces.pop()
            cotangents, derivatives = self._sweep(
                piece.source, *self._numbers(piece), piece.states, cotangents
            )
            first = piece.inner_step
            per_step[first : first + piece.count] = derivatives.numpy()
        return cotangents

    def _kept_again(self, block):
        """The pieces of a block with all their states, computed again from its checkpoint."""
        self.step.assign(tf.nest.pack_sequence_as(self.step.variables, block.checkpoint))
        return [
            piece._replace(states=self._run_again(piece.source, *self._numbers(piece), True)[2])
            for piece in block.pieces
        ]

    def _numbers(self, piece):
        return _constants(piece.position, piece.inner_step, piece.count, self.horizon)

    def _sweep_in_graph(self, source, position, inner_step, count, horizon, states, cotangents):
        """Vector-Jacobian products from the last of `count` steps to the first.

        Returns:
            `(cotangents, derivatives)`, the latter float64 `[count, hyperparameters]`.
        """
        names = self.hyper_optimizer.names
        derivatives = tf.TensorArray("float64", tf.cast(count, "int32"), element_shape=[len(names)])

        def one_step(i, cotangents, derivatives):
            state = [stacked[i] for stacked in states]
            state = tf.nest.pack_sequence_as(self.step.variables, state)
            batch = _data.take(source, position + i)
            values = self.step.hyperparameters(inner_step + i, horizon)
            inputs = [*tf.nest.flatten(state.differentiable), *(values[name] for name in names)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inputs)
                after, _, _ = self.step(state, values, batch)
            outputs = tf.nest.flatten(after.differentiable)
            try:
                gradients = tape.gradient(outputs, inputs, cotangents, "zero")
            except LookupError:
                self._name_the_layer(state, values, batch)
                raise
            gradients = [tf.convert_to_tensor(g) for g in gradients]
            of_names = tf.reshape(gradients[len(cotangents) :], [len(names)])
            derivatives = derivatives.write(tf.cast(i, "int32"), tf.cast(of_names, "float64"))
            return i - 1, gradients[: len(cotangents)], derivatives

        _, cotangents, derivatives = tf.while_loop(
            lambda i, *_: i >= 0,
            one_step,
            [count - 1, cotangents, derivatives],
            parallel_iterations=1,
        )
        return cotangents, derivatives.stack()

    def _name_the_layer(self, state, hyperparameters, batch):
        """Raises the `ValueError` that names the layer without a second derivative.

        Forward mode meets the missing derivative while it calls the layer.
        """
        of_model, _ = self.step.by_stage(hyperparameters)
        primals = (state.weights, state.statistics, of_model)
        tangents = tf.nest.map_structure(lambda p: tf.zeros([1, *p.shape], p.dtype), primals)
        jacobian_vector_products(self.step.gradient_stage(state, batch), primals, tangents)


def _constants(*numbers):
    return [tf.constant(number, "int64") for number in numbers]
