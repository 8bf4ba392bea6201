"""Pure functions out of a compiled Keras model and a Keras optimizer.

The only file that touches Keras's internals. Tensors go in, tensors come out, and no
variable is assigned, so the functions can be differentiated through.
"""

import contextlib
import operator
import re

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import nn as keras_nn
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer


# ----------------------------------------------------------------- twice differentiable layers
def _moments(x, axes, keepdims=False):
    """Mean and variance whose second derivatives are right.

    `tf.nn.moments` stops the gradient of the mean inside the variance: the first derivative
    is right (the mean's term vanishes), the second loses a term.
    """
    mean = tf.reduce_mean(x, axes, keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), axes, keepdims=keepdims)
    return (mean if keepdims else tf.squeeze(mean, axes)), variance


@contextlib.contextmanager
def twice_differentiable():
    """While open, Keras traces layers so that they differentiate twice.

    Normalisation layers use `_moments`; a layer with an operation whose gradient has no
    gradient raises a `ValueError` that names the layer.
    """
    stock_moments, stock_call = keras_nn._compute_moments, keras.layers.Layer.__call__

    def call(layer, *args, **kwargs):
        try:
            return stock_call(layer, *args, **kwargs)
        except LookupError as error:
            _explain(error, f"layer {layer.name!r} ({type(layer).__name__})")
            raise

    keras_nn._compute_moments, keras.layers.Layer.__call__ = _moments, call
    try:
        yield
    finally:
        keras_nn._compute_moments, keras.layers.Layer.__call__ = stock_moments, stock_call


def _explain(error, culprit):
    """Raises a `ValueError` in place of TensorFlow's when an operation lacks a gradient."""
    missing = re.search(r"gradient registry has no entry for: (\w+)", str(error))
    if missing:
        raise ValueError(
            f"The {culprit} is not twice differentiable: TensorFlow has no gradient for its "
            f"operation {missing.group(1)}, so no hypergradient can pass through it. Replace "
            "it, or move it in front of the trainable layers, into the data pipeline."
        ) from error


# ------------------------------------------------------------------------------------- the model
class StatelessModel:
    """A compiled, built Keras model as pure functions of its state.

    The state that a training step changes is split in `weights` (trainable), `statistics`
    (other floating-point variables that training updates, such as moving averages) and
    `counters` (all that carries no tangent, such as random seeds).

    Args:
        model: A compiled and built `keras.Model`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
    """

    def __init__(self, model, batch):
        self.model = model
        self._trainable = list(model.trainable_variables)
        self._non_trainable = list(model.non_trainable_variables)
        self._updated = updated = self._updated_positions(batch)
        floating = [i for i in updated if tf.as_dtype(self._non_trainable[i].dtype).is_floating]
        self._statistics_positions = floating
        self._counter_positions = [i for i in updated if i not in floating]
        self.weights = [variable.value for variable in self._trainable]
        self.statistics = [self._non_trainable[i].value for i in floating]
        self.counters = [self._non_trainable[i].value for i in self._counter_positions]

    def _updated_positions(self, batch):
        """Positions of the non-trainable variables that a training step assigns."""
        positions = []

        def trace(batch):
            before = [tf.convert_to_tensor(v) for v in self._non_trainable]
            _, after, _ = self._call([v.value for v in self._trainable], before, batch, True)
            positions.extend(i for i, (a, b) in enumerate(zip(before, after)) if a is not b)

        tf.function(trace, autograph=False).get_concrete_function(batch)
        return positions

    def _merged(self, statistics, counters):
        merged = [variable.value for variable in self._non_trainable]
        for positions, values in (
            (self._statistics_positions, statistics),
            (self._counter_positions, counters),
        ):
            for position, value in zip(positions, values):
                merged[position] = value
        return merged

    def _call(self, weights, non_trainable, batch, training):
        """`(outputs, new_non_trainable, penalties)`."""
        arguments = {"training": training} if self.model._call_has_training_arg else {}
        with twice_differentiable():
            return self.model.stateless_call(
                weights, non_trainable, batch[0], return_losses=True, **arguments
            )

    def _compiled_loss(self, weights, merged, batch, outputs, penalties, training):
        x, y, sample_weight = batch
        # `compute_loss` adds `model.losses`; the override makes them what we pass.
        self.model._losses_override = list(penalties)
        try:
            loss, _ = self.model.stateless_compute_loss(
                weights,
                merged,
                [v.value for v in self.model.metrics_variables],
                x=x,
                y=y,
                y_pred=outputs,
                sample_weight=sample_weight,
                training=training,
            )
        except LookupError as error:
            _explain(error, f"loss {self.model.loss}")
            raise
        finally:
            self.model._losses_override = []
        return loss

    def gradients(self, weights, statistics, counters, batch):
        """The gradient stage of a training step.

        Returns:
            `((gradients, statistics), (loss, outputs, counters))`, the new values. Weights
            that the loss does not depend on are left out of `gradients`; `connected` tells
            which ones are in.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            merged = self._merged(statistics, counters)
            outputs, new, penalties = self._call(weights, merged, batch, training=True)
            loss = self._compiled_loss(weights, new, batch, outputs, penalties, training=True)
        gradients = tape.gradient(loss, weights)
        self.connected = [gradient is not None for gradient in gradients]
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        if not gradients:
            raise ValueError(f"The loss of {self.model.name!r} depends on no trainable weight.")
        new_statistics = [new[i] for i in self._statistics_positions]
        new_counters = [new[i] for i in self._counter_positions]
        return (gradients, new_statistics), (loss, outputs, new_counters)

    def validation_loss(self, weights, statistics, counters, batch, training=False):
        """`(loss, outputs, counters)`: the compiled loss without regularisation penalties."""
        merged = self._merged(statistics, counters)
        outputs, new, _ = self._call(weights, merged, batch, training=training)
        nothing = [tf.zeros((), keras.config.floatx())]
        loss = self._compiled_loss(weights, new, batch, outputs, nothing, training)
        return loss, outputs, [new[i] for i in self._counter_positions]

    def update_metrics(self, batch, loss, outputs):
        """Adds a batch to the model's loss tracker and compiled metrics."""
        x, y, sample_weight = batch
        size = tf.shape(tf.nest.flatten(x)[0])[0]
        self.model._loss_tracker.update_state(loss, sample_weight=size)
        if self.model._compile_loss is not None and self.model._compile_loss.metrics:
            self.model._compile_loss(y, outputs, sample_weight)  # Feeds each output's tracker.
        self.model.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def reinitialize(self, twin):
        """Takes over from another model of this architecture all that training changes.

        Frozen weights, adapted normalisations and vocabularies stay as they are.
        """
        for mine, other in (
            (self._trainable, twin.trainable_variables),
            (self._non_trainable, twin.non_trainable_variables),
        ):
            for position, (variable, value) in enumerate(zip(mine, other)):
                if mine is self._trainable or position in self._updated:
                    variable.assign(value)


# --------------------------------------------------------------------------------- the optimizer
class TensorScalar:
    """A tensor that stands where a Keras optimizer keeps a Python number.

    It converts to a tensor and computes like one; asked in Python whether it differs from
    or exceeds a number it says yes, so that no branch of the optimizer is switched off.
    """

    def __init__(self, tensor):
        self.tensor = tensor

    @property
    def dtype(self):
        return self.tensor.dtype

    @property
    def shape(self):
        return self.tensor.shape

    def __bool__(self):
        return True

    def __eq__(self, other):
        return self is other

    def __ne__(self, other):
        return self is not other

    def __gt__(self, other):
        return True

    __ge__ = __gt__
    __hash__ = object.__hash__


def _delegate(name):
    function = getattr(operator, name)
    setattr(TensorScalar, f"__{name}__", lambda self, other: function(self.tensor, other))
    setattr(TensorScalar, f"__r{name}__", lambda self, other: function(other, self.tensor))


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _delegate(_name)
TensorScalar.__neg__ = lambda self: -self.tensor
tf.register_tensor_conversion_function(
    TensorScalar,
    lambda value, dtype=None, name=None, as_ref=False: (
        value.tensor if dtype is None else tf.cast(value.tensor, dtype)
    ),
)


class _PureMixin(TFOptimizer):
    """Undoes what Keras's TensorFlow optimizer adds for `tf.distribute`.

    Placed between a stock optimizer and `TFOptimizer` in the method resolution order, it
    leaves the optimizer's own methods alone.
    """


for _name, _method in vars(BaseOptimizer).items():
    if _name in vars(TFOptimizer) and _name != "__init__" and callable(_method):
        setattr(_PureMixin, _name, _method)


def _attributes(hyperparameters):
    attributes = {name: TensorScalar(value) for name, value in hyperparameters.items()}
    if "learning_rate" in attributes:
        rate = attributes.pop("learning_rate").tensor
        attributes["_learning_rate"] = lambda: rate
    return attributes


def with_hyperparameters(optimizer, hyperparameters):
    """A view of a Keras optimizer that shares its variables and has other hyperparameters."""
    view = object.__new__(type(optimizer))
    vars(view).update(vars(optimizer))
    vars(view).update(_attributes(hyperparameters))
    return view


def build_optimizer(optimizer, names, variables):
    """Builds a Keras optimizer with every slot that learning `names` needs."""
    saved = dict(vars(optimizer))
    substitutes = _attributes({name: tf.constant(1.0) for name in names})
    vars(optimizer).update(substitutes)
    try:
        optimizer.build(variables)
    finally:
        vars(optimizer).update({name: saved[name] for name in substitutes})


def numeric_attributes(optimizer):
    """Names of the numbers in a Keras optimizer's config: its candidates for learning."""
    switches = ("gradient_accumulation_steps", "ema_overwrite_frequency", "loss_scale_factor")
    switches += ("ema_momentum",)
    return [
        name
        for name, value in optimizer.get_config().items()
        if (name == "learning_rate" or hasattr(optimizer, name))
        and name not in switches
        and (name in ("learning_rate", "weight_decay") or isinstance(value, (int, float)))
        and not isinstance(value, bool)
    ]


def has_learning_rate_schedule(optimizer):
    """Whether the optimizer's learning rate is a schedule or a callable, not a number."""
    return not isinstance(optimizer._learning_rate, keras.Variable)


class StatelessOptimizer:
    """A built Keras optimizer as a pure function.

    Its variables are split in `slots` (floating point) and `counters` (the rest).
    """

    def __init__(self, optimizer):
        self.optimizer = optimizer
        variables = optimizer.variables
        floating = [tf.as_dtype(variable.dtype).is_floating for variable in variables]
        self._floating = floating
        self.slots = [v.value for v, is_float in zip(variables, floating) if is_float]
        self.counters = [v.value for v, is_float in zip(variables, floating) if not is_float]
        self._class = type(type(optimizer).__name__, (type(optimizer), _PureMixin), {})

    def update(self, weights, slots, counters, hyperparameters, gradients, connected):
        """The update stage of a training step: `((weights, slots), counters)`, the new values.

        Args:
            weights: List of tensors.
            slots, counters: Lists of tensors, as `self.slots` and `self.counters`.
            hyperparameters: `{name: scalar tensor}` that replace the optimizer's own.
            gradients: List of tensors, one for each weight that `connected` marks.
            connected: List of bools, one a weight.
        """
        optimizer = self.optimizer
        view = object.__new__(self._class)
        vars(view).update(vars(optimizer))
        vars(view).update(_attributes(hyperparameters))
        keys = {id(v): optimizer._var_key(v) for v in optimizer._trainable_variables}
        vars(view)["_var_key"] = lambda variable: keys[id(variable)]
        remaining_gradients, remaining_slots, remaining_counters = map(
            iter, (gradients, slots, counters)
        )
        values = [next(remaining_slots if f else remaining_counters) for f in self._floating]
        gradients = [next(remaining_gradients) if c else None for c in connected]
        weights, values = view.stateless_apply(values, gradients, weights)
        slots = [value for value, is_float in zip(values, self._floating) if is_float]
        counters = [value for value, is_float in zip(values, self._floating) if not is_float]
        return (weights, slots), counters


def fresh_slots(optimizer, names, trainable_variables):
    """Start values of all variables of a Keras optimizer, as a list of arrays."""
    twin = type(optimizer).from_config(optimizer.get_config())
    build_optimizer(twin, names, trainable_variables)
    return [variable.numpy() for variable in twin.variables]
