"""Reverse mode: the same hypergradients, at a cost that does not depend on the number of buckets.

The forward run keeps the state at every step, or, when that needs too much memory, at a few of them
(`keras_fds.differentiation.checkpoints`). The sweep then goes back from the validation loss, with
one vector-Jacobian product per inner step. Between kept states it first runs forward again. It
yields the derivatives by the numbers of every single step; buckets only sum them up. Those by
vectors are summed up on the way back, so memory does not grow with the horizon times the length of
a vector.

Reference: Griewank & Walther, "Evaluating Derivatives" (2008), chapter 12 (checkpointing).
"""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import get_batch, is_streamed, materialize, size_in_bytes, telling_of_the_end
from keras_fds.differentiation import checkpoints
from keras_fds.differentiation.divergence import steps_while_ok
from keras_fds.differentiation.mode import Mode
from keras_fds.internals import tf_compilation
from keras_fds.numbers import number

DEFAULT_MEMORY = 2**30


class _Piece(NamedTuple):
    """Steps that are run in one compiled call."""

    source: Any
    position: int
    inner_step: int
    count: int  # type: ignore[assignment]  # A tuple's method.
    states: list  # The states at every step, `[count, …]` each, if they are kept.

    def between(self, first, last):
        """The part of it from one inner step to another, without states; or `None`."""
        start, end = max(first, self.inner_step), min(last, self.inner_step + self.count)
        if start >= end:
            return None
        position = self.position + start - self.inner_step
        return _Piece(self.source, position, start, end - start, [])


@keras.saving.register_keras_serializable("keras_fds")
class Reverse(Mode):
    """Reverse mode (the adjoint method): one sweep back over the steps of a run.

    It costs about four plain trainings for any number of values. It keeps the states of all steps
    (and the batches of a dataset). When they need more memory than allowed, it keeps about 2 √T
    states for T steps, and runs all steps once more, about five plain trainings. With less memory
    it runs them again more often: 51 states are enough for 10,000 steps in six plain trainings, 48
    for 100,000 steps in seven.

    Args:
        memory: Bytes that it may keep. Defaults to 1 GiB.

    Raises:
        ValueError: When `memory` is not positive.

    Example:

    >>> mode = keras_fds.differentiation.Reverse(memory=2**32)
    >>> keras_fds.fit(model, x, y, validation_split=0.05, differentiation=mode)
    """

    name = "reverse"
    goes_back = True

    def __init__(self, memory: int = DEFAULT_MEMORY) -> None:
        self.allowed = number("memory", memory, above=0)

    def bind(self, model, spec, replicas=None):
        bound = super().bind(model, spec, replicas)
        bound.allowed = bound.allowed_for_states = self.allowed
        return bound

    def get_config(self):
        return {"memory": self.allowed}

    def build(self):
        super().build()
        self.pieces, self.checkpoints, self.found = [], {}, None
        self._sweep = tf_compilation.compiled(self._sweep_in_graph)
        self._run_again = tf_compilation.compiled(self._run_in_graph)
        self._pull_back = self.step.compiled(self._pulled_back)

    def supports(self, batches):
        specs = [spec for spec in tf.nest.flatten(batches.spec) if spec is not None]
        if not all(isinstance(spec, tf.TensorSpec) for spec in specs):
            return "Sparse and ragged batches cannot be replayed."
        return ""

    def cost(self, horizon):
        _, plan = self.states_kept(horizon)
        return 4.0 + (plan.repeats if plan else 0)  # See docs/benchmarks.md.

    def work(self, horizon):
        return np.ones(horizon)

    def memory(self, horizon):
        states, size = self.states_kept(horizon)[0], size_in_bytes(self.step.variables)
        kept = [(f"{states} states kept", states * size), ("allowed", self.allowed)]
        return [*super().memory(horizon), *kept]

    @property
    def checkpoint_variables(self):
        return None  # What it keeps is too large to save.

    @property
    def protected_variables(self):
        model = self.step.model.model
        metrics = {id(variable) for variable in model.metrics_variables}
        watched = (*model.variables, *self.outside_variables)
        return [variable for variable in watched if id(variable) not in metrics]

    def states_kept(self, horizon):
        """`(number, plan)`: the most states in memory at once, and where; `None` for all steps."""
        allowed = self.allowed_for_states / size_in_bytes(self.step.variables)
        plan = checkpoints.plan(horizon, allowed)
        if horizon <= max(allowed, plan.states):
            return horizon, None
        return plan.states, plan

    def memory_needed(self, batches, horizon):
        """`(needed, allowed)`: bytes for states, and bytes that the batches leave for them."""
        self.allowed_for_states = self.allowed - batches.bytes_to_keep * horizon
        states, _ = self.states_kept(horizon)
        return states * size_in_bytes(self.step.variables), self.allowed_for_states

    def check_memory(self, batches, horizon):
        """Raises a `ValueError` when the states need more memory than allowed."""
        needed, allowed = self.memory_needed(batches, horizon)
        if needed > allowed:
            states, _ = self.states_kept(horizon)
            raise ValueError(
                f"Reverse mode over {horizon} steps keeps {states} copies of the state, "
                f"{needed} bytes, beside the batches of datasets. Allow it more (`reverse_memory`, "
                "or differentiation=keras_fds.differentiation.Reverse(memory=...)), or use "
                f"differentiation='forward'. Left for states: {max(allowed, 0):.0f} bytes"
            )

    def reset(self, horizon, divergence_factor=None, fresh_slots=True):
        """Begins a run without kept states; see `Mode`."""
        super().reset(horizon, divergence_factor, fresh_slots)
        _, self.plan = self.states_kept(horizon)
        self.stops = [] if self.keeps_all else [0, *self.plan.kept_on_the_way()]
        self.pieces, self.checkpoints, self.found = [], {}, None

    def release(self):
        super().release()
        self.pieces, self.checkpoints, self.found = [], {}, None

    @property
    def keeps_all(self):
        """Whether the states of all steps are kept."""
        return self.plan is None

    # -------------------------------------------------------------------------- training
    def run(self, source, position, inner_step, count):
        done = 0
        ok = True
        while done < count and ok:
            first = inner_step + done
            if self.stops and (first in self.stops or not self.pieces):
                self.checkpoints[first] = self._state()
            to_stops = [stop - first for stop in self.stops if stop > first]
            wanted = min([count - done, *to_stops])
            steps, ok = self._run_piece(source, position + done, first, wanted)
            done += steps
        return done, ok

    def _state(self):
        return tf.nest.flatten(self.step.read())

    def _run_piece(self, source, position, inner_step, count):
        with telling_of_the_end("`steps_per_epoch`"):
            if is_streamed(source):
                source, position = materialize(source, count), 0
        numbers = _constants(position, inner_step, count, self.horizon)
        steps, ok, kept = self._run(source, *numbers, self.keeps_all, False)
        piece = _Piece(source, position, inner_step, int(steps), kept)
        self.pieces.append(piece)
        return piece.count, bool(ok)

    def _run_in_graph(self, source, position, inner_step, count, horizon, keeps_all, again):
        """`(steps, ok, states)`, the states at all steps or none; `again` skips the metrics."""

        def one_step(i, arrays):
            state = self.step.read()
            kept = zip(arrays, tf.nest.flatten(state))
            arrays = [array.write(i, value) for array, value in kept]
            batch = get_batch(source, position + i)
            hyperparameters = self.step.hyperparameters(inner_step + i, horizon)
            is_last = inner_step + i + 1 >= horizon
            after, loss, outputs = self._pure_step(state, hyperparameters, batch, is_last)
            self.step.assign(after)
            if not again:
                self.step.model.update_metrics(batch, loss, outputs)
            return loss, arrays

        arrays = [
            tf.TensorArray(v.dtype, count, element_shape=v.shape)
            for v in (tf.nest.flatten(self.step.variables) if keeps_all else ())
        ]
        detector = None if again else self.step.detector
        steps, ok, arrays = steps_while_ok(count, one_step, arrays, detector=detector)
        return steps, ok, [array.stack() for array in arrays]

    # -------------------------------------------------------------------- hypergradients
    def hypergradients(self):
        per_step, of_vectors = self._swept()
        found = []
        for h, of_steps in zip(self.buckets.hyperparameters, per_step.T):
            found.append(of_vectors[h.name].numpy() if h.is_vector else h.sums(of_steps))
        return self.buckets.join(found)

    def per_step(self):
        vectors = [h.name for h in self.buckets.hyperparameters if h.is_vector]
        if vectors:
            raise ValueError(
                "Hypergradients of single steps are those of numbers, and "
                f"{', '.join(map(repr, vectors))} are vectors. Leave `per_step` out, or give them "
                "more buckets."
            )
        return self._swept()[0]

    def _swept(self):
        """`(per_step, of_vectors)`: `[horizon, hyperparameters]`, and `{name: [num_buckets, …]}`.

        The first is zero for vectors.
        """
        gradients = self.validation_gradients
        cotangents = [*gradients, *(tf.zeros_like(slot) for slot in self.step.variables.slots)]
        per_step = np.zeros([self.horizon, len(self.buckets.names)])
        carried = (
            cotangents,
            {
                h.name: tf.zeros([h.num_buckets, *h.shape], "float64")
                for h in self.buckets.hyperparameters
                if h.is_vector
            },
        )
        if self.keeps_all:
            return per_step, self._sweep_pieces(list(self.pieces), carried, per_step)[1]
        if self.found is not None and self.found[0] is gradients:
            return self.found[1:]
        if self.pieces and not self.checkpoints:
            raise RuntimeError("The checkpoints of this run are used up. Run it again.")
        after = self.step.read()
        last = self.pieces[-1].inner_step + self.pieces[-1].count if self.pieces else 0
        while self.checkpoints:
            first, state = self.checkpoints.popitem()
            left = self.plan.checkpoints - len(self.checkpoints)
            carried = self._sweep_between(first, last, state, left, carried, per_step)
            last = first
        self.step.assign(after)
        self.found = gradients, per_step, carried[1]
        return self.found[1:]

    def _sweep_between(self, first, last, state, left, carried, per_step):
        """As `_sweep_pieces`, from step `last` to step `first`, whose state is given.

        So many checkpoints are left to keep states between them.
        """
        while last - first > self.plan.block:
            middle = self.plan.split(first, last, left)
            self._run_between(first, middle, state, keeps_all=False)
            carried = self._sweep_between(middle, last, self._state(), left - 1, carried, per_step)
            last = middle
        # Freed on return, so the states of one block exist at a time.
        return self._sweep_pieces(
            self._run_between(first, last, state, keeps_all=True), carried, per_step
        )

    def _run_between(self, first, last, state, keeps_all):
        """Runs from a step and its state to another step again; its pieces, maybe with states."""
        self.step.assign(tf.nest.pack_sequence_as(self.step.variables, state))
        parts = (piece.between(first, last) for piece in self.pieces)
        return [
            piece._replace(
                states=self._run_again(piece.source, *self._numbers(piece), keeps_all, True)[2]
            )
            for piece in parts
            if piece is not None
        ]

    def _sweep_pieces(self, pieces, carried, per_step):
        """`(cotangents, derivatives by vectors)` at the start of pieces; fills `per_step`.

        The pieces are used up, so that their states are freed on the way.
        """
        while pieces:
            piece = pieces.pop()
            *carried, derivatives = self._sweep(
                piece.source, *self._numbers(piece), piece.states, *carried
            )
            first = piece.inner_step
            per_step[first : first + piece.count] = derivatives.numpy()
        return carried

    def _numbers(self, piece):
        return _constants(piece.position, piece.inner_step, piece.count, self.horizon)

    def _sweep_in_graph(
        self, source, position, inner_step, count, horizon, states, cotangents, of_vectors
    ):
        """Vector-Jacobian products from the last of `count` steps to the first.

        Returns:
            `(cotangents, of_vectors, derivatives)`, the last float64 `[count, hyperparameters]`.
        """
        names = self.hyper_optimizer.names
        derivatives = tf.TensorArray("float64", count, element_shape=[len(names)])

        def one_step(i, cotangents, of_vectors, derivatives):
            state = [stacked[i] for stacked in states]
            state = tf.nest.pack_sequence_as(self.step.variables, state)
            batch = get_batch(source, position + i)
            values = self.step.hyperparameters(inner_step + i, horizon)
            is_last = inner_step + i + 1 >= horizon
            cotangents, of_names = self._pull_back(state, values, batch, is_last, cotangents)
            of_vectors = self._added(of_vectors, of_names, inner_step + i, horizon)
            of_numbers = [
                0.0 if name in of_vectors else tf.cast(of_name, "float64")
                for name, of_name in of_names.items()
            ]
            of_numbers = tf.reshape(of_numbers, [len(names)])
            derivatives = derivatives.write(i, tf.cast(of_numbers, "float64"))
            return i - 1, cotangents, of_vectors, derivatives

        _, cotangents, of_vectors, derivatives = tf.while_loop(
            lambda i, *_: i >= 0,
            one_step,
            [count - 1, cotangents, of_vectors, derivatives],
            parallel_iterations=1,
        )
        return cotangents, of_vectors, derivatives.stack()

    def _pulled_back(self, state, values, batch, is_last, cotangents):
        """The vector-Jacobian product of a step: `(cotangents, {name: derivative})` before it."""
        names = self.hyper_optimizer.names
        inputs = [*tf.nest.flatten(state.differentiable), *(values[name] for name in names)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            after, _, _ = self.step(state, values, batch, is_last)
        outputs = tf.nest.flatten(after.differentiable)
        try:
            gradients = tape.gradient(outputs, inputs, cotangents, "zero")
        except LookupError:
            self._name_the_layer(state, values, batch)
            raise
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        return gradients[: len(cotangents)], dict(zip(names, gradients[len(cotangents) :]))

    def _added(self, of_vectors, derivatives, inner_step, horizon):
        """Adds a step's derivatives by vectors to those of the buckets that it shares."""
        inner_step, horizon = tf.cast(inner_step, "int64"), tf.cast(horizon, "int64")
        found = {}
        for h in self.buckets.hyperparameters:
            if h.is_vector:
                *neighbours, fraction = h.shares(inner_step, horizon)
                total, of_step = of_vectors[h.name], tf.cast(derivatives[h.name], "float64")
                parts = [1.0] if fraction is None else [1 - fraction, fraction]
                for bucket, part in zip(neighbours, parts):
                    total = tf.tensor_scatter_nd_add(total, [[bucket]], (part * of_step)[None])
                found[h.name] = total
        return found

    def _name_the_layer(self, state, hyperparameters, batch):
        """Raises the `ValueError` that names the layer without a second derivative.

        Forward mode meets the missing derivative during the call of the layer.
        """
        of_model, _ = self.step.by_stage(hyperparameters)
        primals = (state.weights, state.statistics, of_model)
        tangents = tf.nest.map_structure(lambda p: tf.zeros([1, *p.shape], p.dtype), primals)
        self.step.gradient_products(state, batch, primals, tangents, None)


def _constants(*numbers):
    return [tf.constant(number, "int32") for number in numbers]
