"""A compiled Keras model as pure functions of its state.

Tensors go in, tensors come out, and no variable is assigned: the functions can be differentiated.
"""

import contextlib
import types

import keras
import tensorflow as tf

from keras_fds.data import plain
from keras_fds.functional.example_weights import weighted
from keras_fds.functional.learned_numbers import (
    EXAMPLE_WEIGHTS,
    check_used,
    locate,
    substituted,
)
from keras_fds.functional.variable_writes import check_writes
from keras_fds.internals import keras_layers, keras_models

_KEPT = "_kept_by_keras_fds"


def kept_with(model):
    """The dictionary of what is compiled for a model; it lives as long as the model.

    It is emptied by `compile`, when other weights become trainable, and when a number of a layer, a
    regularizer, a loss or the optimizer changes.
    """
    identity = keras_models.compilation(model)
    kept = vars(model).get(_KEPT)
    if kept is None or not keras_models.same_compilation(kept.identity, identity):
        # No tuple: Keras would look for layers in it when it saves or loads the model.
        kept = vars(model)[_KEPT] = types.SimpleNamespace(identity=identity, things={})
    return kept.things


def forget_compiled(model):
    """Lets a model compile anew what depends on its optimizer."""
    kept_with(model).clear()
    model.train_function = None


class StatelessModel:
    """A compiled, built Keras model as pure functions of its state.

    The state that a training step changes is split in `weights` (trainable), `statistics`
    (other floating-point variables that training updates, such as moving averages) and
    `counters` (all that carries no tangent, such as random seeds and the state of metrics).
    Variables that a step assigns but the model does not track are part of the state.

    Args:
        model: A compiled and built `keras.Model`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        names: The numbers of the model and its loss that are learned, see `locate`, and the
            learned weights of examples.
        each: Those of them that have one value for every place.

    Attributes:
        outside: The variables of the state that are not in `model.variables`.
        evaluates_in_order: Whether an evaluation changes statistics, as stateful recurrent layers
            do, so its batches depend on each other.
        is_seed, is_metric: Which of the counters are states of seed generators, and of metrics.

    Raises:
        ValueError: A step assigns something that cannot be part of the state.
    """

    def __init__(self, model, batch, names=(), each=()):
        self.model, self.each = model, each
        self.example_weights = [name for name in names if name in EXAMPLE_WEIGHTS]
        self.places = {n: locate(model, n) for n in names if n not in EXAMPLE_WEIGHTS}
        self._trainable = list(model.trainable_variables)
        others = list(model.non_trainable_variables)
        written, written_in_evaluation = self._written(batch)
        known = {id(v) for v in (*self._trainable, *others)}
        self.outside = [v for key, v in written.items() if key not in known]
        self._metrics = {id(variable) for variable in model.metrics_variables}
        self._updated = [v for v in (*others, *self.outside) if id(v) in written]
        self._statistics = [v for v in self._updated if self._carries_derivatives(v)]
        self._counters = [v for v in self._updated if not self._carries_derivatives(v)]
        self.evaluates_in_order = any(id(v) in written_in_evaluation for v in self._statistics)
        self.is_seed = [keras_layers.is_seed(v) for v in self._counters]
        self.is_metric = [id(v) in self._metrics for v in self._counters]
        self.weights = [variable.value for variable in self._trainable]
        self.statistics = [variable.value for variable in self._statistics]
        self.counters = [variable.value for variable in self._counters]

    def _carries_derivatives(self, variable):
        return tf.as_dtype(variable.dtype).is_floating and id(variable) not in self._metrics

    def _written(self, batch):
        """`{id: variable}` that training or evaluation assigns, and that evaluation assigns."""
        written = [{}, {}]

        def trace(batch):
            for training, each in zip((True, False), written):
                weights = {n: tf.ones([1]) for n in self.example_weights if training}
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(weights)
                    called, loss, scope = self._computed(
                        self._constants(), batch, training, weights=weights
                    )
                each.update(called.scope.written | scope.written)
                if weights:
                    self._check_weighted(tape.gradient(loss, weights))

        traced = tf.function(trace, autograph=False).get_concrete_function(batch)
        check_writes(self.model, traced.graph)
        for variable in self._trainable:
            if id(variable) in written[0]:
                raise ValueError(
                    f"A layer of {self.model.name!r} assigns its trainable weight "
                    f"{variable.path!r} while it trains, as SpectralNormalization does. Which "
                    "value its gradient belongs to is then unknown, so hypergradients are not "
                    "possible: leave the layer out, or freeze it."
                )
        return {**written[0], **written[1]}, written[1]

    def _check_weighted(self, gradients):
        """Raises a `ValueError` for weights of examples that the training loss does not use."""
        for name, gradient in gradients.items():
            if gradient is None:
                raise ValueError(
                    f"{name!r} cannot be learned: the training loss of {self.model.name!r} does "
                    "not use sample weights, so its hypergradient would always be zero. Pass "
                    "`sample_weight` on in `compute_loss`."
                )

    def _constants(self):
        """All variables as they are; Keras looks up in a state what it regularizes."""
        return [(variable, variable.value) for variable in self.model.variables]

    def _state(self, weights, statistics, counters):
        """`(variable, tensor)` pairs of all variables."""
        return [
            *self._constants(),
            *zip(self._trainable, weights),
            *zip(self._statistics, statistics),
            *zip(self._counters, counters),
        ]

    def _computed(
        self, state, batch, training, tape=None, penalties=True, weights=None, share=None
    ):
        """`(called, loss, scope)` of a batch, with or without the penalties.

        `weights` are the learned weights of examples, by name; `share` is a factor on all that is
        not the compiled loss.
        """
        stock = keras_layers.without_activity_regularizers(self.model)
        with contextlib.nullcontext() if penalties else stock, keras_layers.twice_differentiable():
            called = keras_models.call_model(self.model, state, batch[0], training, tape)
        if penalties:
            losses = called.added + called.penalties
        else:
            # A zero, where nothing is left to add, keeps Keras from adding the penalties itself.
            losses = called.added or [tf.zeros((), keras.config.floatx())] * bool(called.penalties)
        if share is not None:
            losses = [loss * tf.cast(share, loss.dtype) for loss in losses]
        if not losses and training and keras_models.has_no_loss(self.model):
            raise ValueError(
                f"The model {self.model.name!r} is compiled without a loss, and none of its layers "
                "adds one. Pass `loss=` to compile()."
            )
        assigned = called.scope.written.values()
        state = [*state, *((v, called.scope.get_current_value(v)) for v in assigned)]
        batch = weighted(batch, called.outputs, weights or {})
        loss, scope = keras_models.compiled_loss(
            self.model, state, batch, called.outputs, losses, training, tape
        )
        return called, loss, scope

    def _after(self, scope):
        """The new `(statistics, counters)`."""
        groups = self._statistics, self._counters
        return [[scope.get_current_value(v) for v in group] for group in groups]

    def gradients(self, weights, statistics, counters, hyperparameters, batch, share=None):
        """The gradient stage of a training step.

        Args:
            weights, statistics, counters: Lists of tensors, as the attributes of that name.
            hyperparameters: `{name: tensor}` for the names given to the constructor.
            batch: `(x, y, sample_weight)`.
            share: A factor on penalties and added losses: the batch's part of a greater one, whose
                compiled losses are summed up. Defaults to `None`, 1.

        Returns:
            `((gradients, statistics), (loss, outputs, counters, slices))`, the new values.
            Weights that the loss does not depend on are left out of `gradients`; `connected`
            tells which ones are in. Of an embedding's table they are the gradients of the rows
            that a batch looked up, and `slices` has the rows' numbers; it has `None` for other
            weights. The loss is a scalar, or one value per example with `reduction="none"`, whose
            gradients add up, as in Keras.
        """
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            substituted(self.places, hyperparameters, self.each) as scalars,
        ):
            tape.watch(weights)
            state = self._state(weights, statistics, counters)
            of_examples = {name: hyperparameters[name] for name in self.example_weights}
            called, loss, scope = self._computed(
                state, batch, True, tape, weights=of_examples, share=share
            )
            scaled = self.model.optimizer.scale_loss(loss)  # The update divides by the factor.
        check_used(scalars)
        with keras_layers.explaining(f"model {self.model.name!r}"):
            gradients = tape.gradient(scaled, weights)
        self.connected = [gradient is not None for gradient in gradients]
        gradients = [gradient for gradient in gradients if gradient is not None]
        slices = [g.indices if isinstance(g, tf.IndexedSlices) else None for g in gradients]
        gradients = [g if rows is None else g.values for g, rows in zip(gradients, slices)]
        if not gradients:
            raise ValueError(f"The loss of {self.model.name!r} depends on no trainable weight.")
        statistics, counters = self._after(scope)
        return (gradients, statistics), (loss, called.outputs, counters, slices)

    def validation_loss(self, weights, statistics, counters, batch, training=False, share=None):
        """`(loss, outputs, statistics, counters)`: as `model.evaluate`, without penalties.

        The penalties of weight and activity regularizers are left out; what layers add by
        `add_loss` counts. Learned numbers of the model and its loss have the values they were
        compiled with, so the objective does not change during a search. `share` as in `gradients`.
        """
        state = self._state(weights, statistics, counters)
        called, loss, scope = self._computed(state, batch, training, penalties=False, share=share)
        return loss, called.outputs, *self._after(scope)

    def keep_metrics(self, counters):
        """Assigns the states of metrics among `counters`, a list of tensors."""
        for variable, value in zip(self._counters, counters):
            if id(variable) in self._metrics:
                variable.value.assign(value)

    def update_metrics(self, batch, loss, outputs):
        """Adds a batch to the model's loss tracker and compiled metrics."""
        keras_models.update_metrics(self.model, plain(batch), loss, outputs)

    def check_trainable(self):
        """Raises a `ValueError` when other weights are trainable now than at the beginning."""
        if [id(v) for v in self.model.trainable_variables] != [id(v) for v in self._trainable]:
            raise ValueError(
                f"Other weights of {self.model.name!r} are trainable now than when the search "
                "began. Freeze layers before `fit`, and compile the model with a new "
                "HyperOptimizer."
            )

    @property
    def trained(self):
        """The variables of the model that training changes: not frozen ones, nor vocabularies."""
        outside = {id(variable) for variable in self.outside}
        return [*self._trainable, *(v for v in self._updated if id(v) not in outside)]
