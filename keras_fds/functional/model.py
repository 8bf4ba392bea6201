"""A compiled Keras model as pure functions of its state.

Tensors go in, tensors come out, and no variable is assigned: the functions can be differentiated.
"""

import keras
import tensorflow as tf

from keras_fds.functional.learned_numbers import check_used, locate, substituted
from keras_fds.functional.variable_writes import check_writes
from keras_fds.internals import keras_layers, keras_models

_KEPT = "_kept_by_keras_fds"


class _Kept:
    """What was compiled for a model as it is compiled now."""

    def __init__(self, identity):
        self.identity, self.things = identity, {}


def kept_with(model):
    """The dictionary of what is compiled for a model; it lives as long as the model.

    It is emptied by `compile`, when other weights become trainable, and when a number of a layer, a
    regularizer, a loss or the optimizer changes.
    """
    identity = keras_models.compilation(model)
    kept = vars(model).get(_KEPT)
    if kept is None or not keras_models.same_compilation(kept.identity, identity):
        kept = vars(model)[_KEPT] = _Kept(identity)
    return kept.things


class StatelessModel:
    """A compiled, built Keras model as pure functions of its state.

    The state that a training step changes is split in `weights` (trainable), `statistics`
    (other floating-point variables that training updates, such as moving averages) and
    `counters` (all that carries no tangent, such as random seeds and the state of metrics).
    Variables that a step assigns but the model does not track are part of the state.

    Args:
        model: A compiled and built `keras.Model`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        names: The numbers of the model and its loss that are learned, see `locate`.

    Attributes:
        outside: The variables of the state that are not in `model.variables`.
        evaluates_in_order: Whether an evaluation changes statistics, as stateful recurrent layers
            do, so its batches depend on each other.

    Raises:
        ValueError: A step assigns something that cannot be part of the state.
    """

    def __init__(self, model, batch, names=()):
        self.model = model
        self.places = {name: locate(model, name) for name in names}
        self._trainable = list(model.trainable_variables)
        self._non_trainable = list(model.non_trainable_variables)
        written, written_in_evaluation = self._written(batch)
        known = {id(v) for v in (*self._trainable, *self._non_trainable)}
        self.outside = [v for key, v in written.items() if key not in known]
        self._non_trainable += self.outside
        metrics = {id(variable) for variable in model.metrics_variables}
        self._updated = [i for i, v in enumerate(self._non_trainable) if id(v) in written]
        carrying = [
            i
            for i in self._updated
            if tf.as_dtype(self._non_trainable[i].dtype).is_floating
            and id(self._non_trainable[i]) not in metrics
        ]
        self._statistics_positions = carrying
        self._counter_positions = [i for i in self._updated if i not in carrying]
        self.evaluates_in_order = any(
            id(self._non_trainable[i]) in written_in_evaluation for i in carrying
        )
        self.weights = [variable.value for variable in self._trainable]
        self.statistics = [self._non_trainable[i].value for i in carrying]
        self.counters = [self._non_trainable[i].value for i in self._counter_positions]
        of_metrics = [id(self._non_trainable[i]) in metrics for i in self._counter_positions]
        self._of_metrics = of_metrics

    def _written(self, batch):
        """`{id: variable}` that training or evaluation assigns, and that evaluation assigns."""
        written = [{}, {}]

        def trace(batch):
            for training, each in zip((True, False), written):
                values = [v.value for v in (*self._trainable, *self._non_trainable)]
                weights, others = values[: len(self._trainable)], values[len(self._trainable) :]
                called = self._call(weights, others, batch, training)
                losses = called.added + called.penalties
                loss = self._loss(weights, others, batch, called, losses, training)
                each.update({id(v): v for v in (*called.written, *loss.written)})

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

    def _merged(self, statistics, counters):
        merged = [variable.value for variable in self._non_trainable]
        for positions, values in (
            (self._statistics_positions, statistics),
            (self._counter_positions, counters),
        ):
            for position, value in zip(positions, values):
                merged[position] = value
        return merged

    def _state(self, weights, non_trainable):
        return [*zip(self._trainable, weights), *zip(self._non_trainable, non_trainable)]

    def _call(self, weights, non_trainable, batch, training, tape=None):
        """The model's `keras_layers.Called`."""
        state = self._state(weights, non_trainable)
        with keras_layers.twice_differentiable():
            return keras_models.call_model(self.model, state, batch[0], training, tape)

    def _loss(self, weights, non_trainable, batch, called, losses, training, tape=None):
        """The model's `keras_models.Loss` after a call."""
        non_trainable = [
            v if called.value(variable) is None else called.value(variable)
            for variable, v in zip(self._non_trainable, non_trainable)
        ]
        state = self._state(weights, non_trainable)
        # Also variables outside of the model's, before they are known.
        state += [
            (v, called.value(v)) for v in called.written if all(v is not mine for mine, _ in state)
        ]
        if not losses and training and keras_models.has_no_loss(self.model):
            raise ValueError(
                f"The model {self.model.name!r} is compiled without a loss, and none of its layers "
                "adds one. Pass `loss=` to compile()."
            )
        outputs = called.outputs
        return keras_models.compiled_loss(self.model, state, batch, outputs, losses, training, tape)

    def _after(self, loss):
        """The new `(statistics, counters)`."""
        return [
            [loss.value(self._non_trainable[i]) for i in positions]
            for positions in (self._statistics_positions, self._counter_positions)
        ]

    def gradients(self, weights, statistics, counters, hyperparameters, batch):
        """The gradient stage of a training step.

        Args:
            weights, statistics, counters: Lists of tensors, as the attributes of that name.
            hyperparameters: `{name: scalar tensor}` for the names given to the constructor.
            batch: `(x, y, sample_weight)`.

        Returns:
            `((gradients, statistics), (loss, outputs, counters))`, the new values. Weights
            that the loss does not depend on are left out of `gradients`; `connected` tells
            which ones are in. The loss is a scalar, or one value per example with
            `reduction="none"`, whose gradients add up, as in Keras.
        """
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            substituted(self.places, hyperparameters) as scalars,
        ):
            tape.watch(weights)
            merged = self._merged(statistics, counters)
            called = self._call(weights, merged, batch, True, tape)
            losses = called.added + called.penalties
            loss = self._loss(weights, merged, batch, called, losses, True, tape)
        check_used(scalars)
        with keras_layers.explaining(f"model {self.model.name!r}"):
            gradients = tape.gradient(loss.value_of_loss, weights)
        self.connected = [gradient is not None for gradient in gradients]
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        if not gradients:
            raise ValueError(
                f"The loss of {self.model.name!r} depends on no trainable weight. Check the "
                "compiled loss, `compute_loss` and which layers are frozen."
            )
        statistics, counters = self._after(loss)
        return (gradients, statistics), (loss.value_of_loss, called.outputs, counters)

    def validation_loss(self, weights, statistics, counters, batch, training=False):
        """`(loss, outputs, statistics, counters)`: as `model.evaluate`, without penalties.

        The penalties of weight and activity regularizers are left out; what layers add by
        `add_loss` counts. Learned numbers of the model and its loss have the values they were
        compiled with, so the objective does not change during a search.
        """
        merged = self._merged(statistics, counters)
        with keras_layers.without_activity_regularizers(self.model):
            called = self._call(weights, merged, batch, training=training)
        # When no loss is left to add, a zero keeps Keras from adding the penalties itself.
        losses = called.added or [tf.zeros((), keras.config.floatx())] * bool(called.penalties)
        loss = self._loss(weights, merged, batch, called, losses, training)
        return loss.value_of_loss, called.outputs, *self._after(loss)

    def keep_metrics(self, counters):
        """Assigns the states of metrics among `counters`, a list of tensors."""
        for variable, value, is_metric in zip(self.counters, counters, self._of_metrics):
            if is_metric:
                variable.assign(value)

    def update_metrics(self, batch, loss, outputs):
        """Adds a batch to the model's loss tracker and compiled metrics."""
        keras_models.update_metrics(self.model, batch, loss, outputs)

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
        updated = (self._non_trainable[i] for i in self._updated)
        return [*self._trainable, *(v for v in updated if id(v) not in outside)]
