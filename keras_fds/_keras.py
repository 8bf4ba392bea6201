"""Everything of Keras that is not public: the only file that touches its internals.

When `tests/keras_test.py` fails, Keras has changed and this file is to be mended.
"""

import contextlib
import inspect
import re
import warnings
import weakref
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.backend.common.variables import Variable as CommonVariable
from keras.src.backend.tensorflow import linalg as keras_linalg
from keras.src.backend.tensorflow import numpy as keras_numpy
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer import (
    BaseImagePreprocessingLayer,
)
from keras.src.models.functional import Functional
from keras.src.optimizers.base_optimizer import BaseOptimizer
from keras.src.saving import serialization_lib

from keras_fds import _derivatives, _tensorflow


@contextlib.contextmanager
def _replaced(owner, **attributes):
    stock = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in stock.items():
            setattr(owner, name, value)


# ----------------------------------------------------------------- twice differentiable layers
_warned_of = weakref.WeakSet()
_warned_of_loss = weakref.WeakSet()


@contextlib.contextmanager
def twice_differentiable(loss_of=None):
    """While open, Keras traces layers so that they differentiate twice.

    Functions of TensorFlow whose second derivative is wrong are replaced, and cuDNN's, which
    have none, are not used. A layer with an operation whose gradient has no gradient raises
    `NotTwiceDifferentiable`, which names the layer; one that stops gradients, or defines its own,
    is warned of, once.

    Args:
        loss_of: The model whose loss is traced, which is outside of all layers.
    """
    stock_call, stock_stop = keras.layers.Layer.__call__, tf.stop_gradient
    calling = []  # The layers that are being called, innermost last.

    def stop_gradient(*args, **kwargs):
        if calling:
            _warn_of(calling[-1], _STOPS)
        return stock_stop(*args, **kwargs)

    def tell_of_custom_gradient():
        if calling:
            _warn_of(calling[-1], _DEFINES_ITS_OWN)
        elif loss_of is not None and loss_of not in _warned_of_loss:
            _warned_of_loss.add(loss_of)
            _warn(f"loss of {loss_of.name!r}", _DEFINES_ITS_OWN)

    def call(layer, *args, **kwargs):
        calling.append(layer)
        try:
            with explaining(f"layer {layer.name!r} ({type(layer).__name__})"), _own_floatx(layer):
                return stock_call(layer, *args, **kwargs)
        finally:
            calling.pop()

    def no_cudnn(*args, **kwargs):
        raise NotImplementedError

    with contextlib.ExitStack() as stack:
        for module, function in _derivatives.REPLACEMENTS:
            for owner in _derivatives.owners(module):
                stack.enter_context(_replaced(owner, **{function.__name__: function}))
        stack.enter_context(_replaced(tf, stop_gradient=stop_gradient))
        stack.enter_context(_tensorflow.telling_of_custom_gradients(tell_of_custom_gradient))
        stack.enter_context(_replaced(keras_backend, lstm=no_cudnn, gru=no_cudnn))
        stack.enter_context(_replaced(keras_backend.nn, ctc_loss=_derivatives.ctc_loss))
        stack.enter_context(_replaced(keras.layers.Layer, __call__=call))
        yield


@contextlib.contextmanager
def _own_floatx(layer):
    """While open, float32 is the default for a layer that Keras computes in float32 only."""
    floatx = keras.config.floatx()
    if floatx != "float64" or not _is_float32_only(type(layer)):
        yield
        return
    keras.config.set_floatx("float32")
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)


_STOPS = (
    "stops gradients (tf.stop_gradient): hypergradients take what it stops as constant. If that is "
    "not meant, write the layer without it."
)
_DEFINES_ITS_OWN = (
    "defines its own gradient (custom_gradient): hypergradients take it as the derivative, in "
    "training and in validation, where finite differences would see the function itself."
)


def _warn_of(layer, what):
    """Warns, once a layer, of what it does to gradients."""
    if layer not in _warned_of:
        _warned_of.add(layer)
        _warn(f"layer {layer.name!r} ({type(layer).__name__})", what)


def _warn(culprit, what):
    warnings.warn(
        f"The {culprit} {what} keras_fds.check_hypergradients(model, train_data, validation_data) "
        "measures what that makes of them.",
        stacklevel=3,
    )


class NotTwiceDifferentiable(ValueError):
    """An operation lacks a gradient, or the gradient of its gradient."""


@contextlib.contextmanager
def explaining(culprit):
    """Raises `NotTwiceDifferentiable` in place of TensorFlow's error."""
    try:
        yield
    except LookupError as error:
        missing = re.search(
            r"gradient registry has no entry for: (\w+)|No gradient defined .*op type: (\w+)",
            str(error),
        )
        if not missing:
            raise
        operation = missing.group(1) or missing.group(2)
        raise NotTwiceDifferentiable(
            f"The {culprit} is not twice differentiable: TensorFlow has no gradient for its "
            f"operation {operation}, so no hypergradient can pass through it. Replace "
            "it, or move it in front of the trainable layers, into the data pipeline."
        ) from error


# ---------------------------------------------------------------------------------- the model
def build_model(model, batch):
    """Creates all variables of a compiled model from the specs of a batch."""
    if not model.built:
        build_variables(model, batch[0])
    model._symbolic_build(data_batch=_keras_tensors(batch))


def build_variables(model, inputs):
    """Creates a model's variables from the specs of its inputs."""
    keras_backend.compute_output_spec(model, _keras_tensors(inputs), training=False)


def _keras_tensors(specs):
    return tf.nest.map_structure(
        lambda t: (
            None
            if t is None
            else keras.KerasTensor(t.shape, t.dtype.name, sparse=isinstance(t, tf.SparseTensorSpec))
        ),
        specs,
    )


def rebuilt(model):
    """Another model of the same architecture, from the model's config; not compiled."""
    if not isinstance(model, (keras.Sequential, Functional)):
        return type(model).from_config(model.get_config())
    was_compiled, model.compiled = model.compiled, False
    try:  # Compiled as well, it would need every part of the optimizer registered with Keras.
        return keras.models.clone_model(model)
    finally:
        model.compiled = was_compiled


def rebuilt_in_float64(model):
    """Another model from the model's config, in which every floating-point dtype is float64."""
    parts = [part for layer in layers_of(model) for part in (layer, *vars(layer).values())]
    kinds = [part if inspect.isfunction(part) else type(part) for part in parts]
    own = {
        kind.__name__: kind
        for kind in kinds
        if kind.__module__.split(".")[0] not in ("keras", "builtins")
    }
    # The config was made just now in this process: what it holds may be run.
    with keras.saving.CustomObjectScope(own), serialization_lib.SafeModeScope(False):
        return type(model).from_config(_in_float64(model.get_config()))


def _in_float64(config):
    """A copy of a JSON-like config with floating-point dtypes and policies in float64."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_in_float64, config))
    if not isinstance(config, dict):
        return config
    kind = getattr(keras.layers, str(config.get("class_name")), None)
    if isinstance(kind, type) and _is_float32_only(kind):
        return config
    if config.get("class_name") == "DTypePolicy" and "float" in config["config"]["name"]:
        return {**config, "config": {"name": "float64"}}
    changed = {key: _in_float64(value) for key, value in config.items()}
    dtype = config.get("dtype")
    if isinstance(dtype, str) and re.search("float", dtype):
        changed["dtype"] = "float64"
    return changed


# Layers that Keras computes in float32 only and that act on data; and exceptions.
_FLOAT32 = (keras.layers.MelSpectrogram, BaseImagePreprocessingLayer)
_ANY_FLOAT = (keras.layers.Resizing, keras.layers.CenterCrop)


def _is_float32_only(kind):
    return issubclass(kind, _FLOAT32) and not issubclass(kind, _ANY_FLOAT)


def losses_in_float64(model):
    """`{"loss", "loss_weights"}`: what the model was compiled with, to compile another one."""

    def converted(loss):
        if isinstance(loss, keras.losses.Loss):
            # Not `copy.copy`, which Keras makes a way through `get_config`.
            stock, loss = loss, object.__new__(type(loss))
            vars(loss).update(vars(stock))
            loss._dtype_policy, loss._dtype = keras.dtype_policies.get("float64"), "float64"
            if loss_arguments(loss) is not None:
                loss._fn_kwargs = dict(loss._fn_kwargs)
        return loss

    weights = getattr(model._compile_loss, "_user_loss_weights", None)
    return {"loss": tf.nest.map_structure(converted, model.loss), "loss_weights": weights}


def is_composition(model):
    """Whether a model only calls its layers one after another, so that no code is its own."""
    return isinstance(model, (keras.Sequential, Functional))


def layers_of(model):
    """The model and all layers inside it, at any depth."""
    return model._flatten_layers()


def own_variables(layer):
    """The variables that a layer keeps itself, without those of the layers inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def seed_generators_of(layer):
    """The `keras.random.SeedGenerator`s that a layer keeps itself."""
    return list(layer._seed_generators)


def fresh_seed_state(generator):
    """The state of a seed generator that is made anew."""
    seed = generator._initial_seed
    return keras.random.SeedGenerator(seed).state.numpy()


def replayed_build(layer):
    """Runs a layer's `build` again, and leaves the layer as it is.

    Returns:
        `(variable, shape, dtype, initializer)` for every weight that it adds, where the variable
        is the one that it added the first time.
    """
    remaining = own_variables(layer)
    calls = []

    def add_weight(self, shape=None, initializer=None, dtype=None, name=None, **_):
        shape = () if shape is None else tuple(shape) if not isinstance(shape, int) else (shape,)
        if self is not layer:
            raise ValueError(f"It builds the layer {self.name!r} inside it.")
        alike = [v for v in remaining if tuple(v.shape) == shape and name in (None, v.name)]
        if not alike:
            raise ValueError(f"It adds another weight {name!r} of shape {shape}.")
        variable = alike[0]
        remaining[:] = [v for v in remaining if v is not variable]
        calls.append((variable, shape, dtype or variable._dtype, initializer))
        return variable

    attributes = dict(vars(layer))
    config = layer.get_build_config()
    try:
        vars(layer)["built"] = False
        with _replaced(keras.layers.Layer, add_weight=add_weight):
            if config is not None:
                layer.build_from_config(config)
    finally:
        vars(layer).clear()
        vars(layer).update(attributes)
    return calls


class _RecordingScope(keras.StatelessScope):
    """A stateless scope that also remembers which variables were assigned.

    What is assigned is a constant to the tape of the step's gradient, as reading a variable is in
    Keras; to all other tapes and accumulators it is what it was computed from.
    """

    def __init__(self, *arguments, tape=None, **keywords):
        super().__init__(*arguments, **keywords)
        self.written, self.tape = {}, tape

    def add_update(self, update):
        variable, value = update
        self.written[id(variable)] = variable
        if self.tape is not None:
            with self.tape.stop_recording():
                value = tf.identity(value)
        super().add_update((variable, value))


class Called(NamedTuple):
    """What a call gave on other values of the variables."""

    outputs: Any
    value: Any  # `value(variable)` is a variable's value after the call, or None.
    added: list  # The losses of `add_loss` and of activity regularizers.
    penalties: list  # Those of the regularizers of weights.
    written: list  # The variables that were assigned.


def call_model(model, state, inputs, training, tape=None):
    """Calls a model as its `train_step` would, on other values of its variables.

    Args:
        state: `(variable, tensor)` pairs.
        tape: The `tf.GradientTape` of the step's gradient, where it is taken.

    Returns:
        A `Called`.
    """
    return call_layer(model, state, inputs, tape=tape, **training_argument(model, training))


def call_layer(layer, state, *arguments, tape=None, **keywords):
    """Calls a layer on other values of its variables; a `Called`."""
    with _RecordingScope(state_mapping=state, collect_losses=True, tape=tape) as scope:
        outputs = layer(*arguments, **keywords)
        losses = list(layer.losses)
        number = len(layer._get_regularization_losses())
    first = len(losses) - number
    written = list(scope.written.values())
    return Called(outputs, scope.get_current_value, losses[:first], losses[first:], written)


@contextlib.contextmanager
def without_activity_regularizers(model):
    """While open, the activity regularizers of layers add no losses."""
    with contextlib.ExitStack() as stack:
        for layer in layers_of(model):
            stock = layer.activity_regularizer
            if stock is not None:
                stack.callback(vars(layer).__setitem__, "activity_regularizer", stock)
                vars(layer)["activity_regularizer"] = None
        yield


def training_argument(layer, training):
    """`{"training": training}` for a layer whose `call` has that argument, else nothing."""
    return {"training": training} if layer._call_has_training_arg else {}


class Loss(NamedTuple):
    """A loss on other values of the variables; see `Called`."""

    value_of_loss: Any
    value: Any
    written: list


def compiled_loss(model, state, batch, outputs, losses, training, tape=None):
    """A model's `compute_loss` with other values of its variables and given added losses.

    Args: see `call_model`.

    Returns:
        A `Loss`.

    Raises:
        ValueError: There is no loss at all.
    """
    x, y, sample_weight = batch
    with (
        _RecordingScope(state_mapping=state, tape=tape) as scope,
        # `compute_loss` adds `model.losses`; the override makes them what we pass.
        _replaced(model, _losses_override=list(losses)),
        twice_differentiable(loss_of=model),
        explaining(f"loss {_called(model.loss)}"),
    ):
        loss = model._compute_loss(x, y, outputs, sample_weight, training)
    return Loss(loss, scope.get_current_value, list(scope.written.values()))


def has_no_loss(model):
    """Whether a model is compiled without a loss and does not compute one by itself."""
    return model._compile_loss is None and type(model).compute_loss is keras.Model.compute_loss


def _called(loss):
    """What a message calls a compiled loss."""
    if isinstance(loss, str) or loss is None:
        return repr(loss)
    return repr(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss)


def update_metrics(model, batch, loss, outputs):
    """Adds a batch to a model's loss tracker and compiled metrics."""
    x, y, sample_weight = batch
    model._loss_tracker.update_state(loss, sample_weight=batch_size(x))
    results = model.compute_metrics(x, y, outputs, sample_weight=sample_weight)
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        own = sorted(set(results or ()) - set(model.get_metrics_result()))
        if own:
            raise ValueError(
                f"`compute_metrics` of {model.name!r} returns {', '.join(map(repr, own))}, which "
                "is none of the model's metrics, so it cannot be kept from step to step. Make it a "
                "keras.metrics.Metric of the model."
            )


def batch_size(x):
    """The number of examples in a batch of inputs, as Keras counts them."""
    return tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def compiled_losses(model):
    """The compiled loss of each output: a list of tuples with `name`, `loss`, `loss_weights`.

    Keras reads it in every call; empty for a model without a compiled loss or not built.
    """
    return getattr(model._compile_loss, "_flat_losses", None) or []


def loss_arguments(loss):
    """The numbers that a stock loss passes on to its function, a dictionary, or None."""
    return getattr(loss, "_fn_kwargs", None)


# --------------------------------------------------------------------------------- the optimizer
class PureMixin(TFOptimizer):
    """Undoes what Keras's TensorFlow optimizer adds for `tf.distribute`.

    Placed between a stock optimizer and `TFOptimizer` in the method resolution order, it
    leaves the optimizer's own methods alone.
    """


for _name, _method in vars(BaseOptimizer).items():
    if _name in vars(TFOptimizer) and _name != "__init__" and callable(_method):
        setattr(PureMixin, _name, _method)


def trained_variables(optimizer):
    """The variables that an optimizer was built for."""
    return optimizer._trainable_variables


def has_learning_rate_schedule(optimizer):
    """Whether the optimizer's learning rate is a schedule or a callable, not a number."""
    return not isinstance(optimizer._learning_rate, keras.Variable)


def config_of(optimizer):
    """An optimizer's arguments, its learning rate as it is: a callable need not have a config."""
    view = object.__new__(type(optimizer))
    vars(view).update(vars(optimizer))
    if has_learning_rate_schedule(optimizer):
        vars(view)["_learning_rate"] = tf.constant(0.0)
        return {**view.get_config(), "learning_rate": optimizer._learning_rate}
    return view.get_config()


# An optimizer takes roots of averages of squared gradients. One of them is zero for a weight that
# never had a gradient; then so is what it divides, and its derivative does not matter as long as
# it is finite. So is the norm of such weights' gradients in Muon.
def _square_root(x):
    """`sqrt` with the derivative 0 at 0."""
    zero = tf.equal(x, 0)
    return tf.where(zero, tf.zeros_like(x), tf.sqrt(tf.where(zero, tf.ones_like(x), x)))


def _power(x, y):
    """`pow` with the derivative 0 where `x` is 0 and it would be infinite."""
    root = tf.equal(x, 0) & (y > 0) & (y < 1)
    return tf.where(root, tf.zeros_like(x), tf.pow(tf.where(root, tf.ones_like(x), x), y))


class _Reading:
    """A variable's value that is read when it is used, as that of a `tf.Variable` is."""

    def __init__(self, read):
        self.read = read

    def __getattr__(self, name):
        return getattr(self.read(), name)


def _delegate(name):
    setattr(_Reading, name, lambda self, *others: getattr(tf.Tensor, name)(self.read(), *others))


for _name in tf.Tensor.OVERLOADABLE_OPERATORS:
    _delegate(_name)
tf.register_tensor_conversion_function(
    _Reading,
    lambda value, dtype=None, name=None, as_ref=False: tf.convert_to_tensor(value.read(), dtype),
)


@contextlib.contextmanager
def _read_when_used():
    """While open, `variable.value` in a stateless scope is read when it is used, not before.

    So it is outside such a scope, where `variable.value` is a `tf.Variable`: what an optimizer
    keeps in a Python variable changes with the next assignment.
    """
    read = CommonVariable.value.fget
    value = property(lambda variable: _Reading(lambda: read(variable)))
    with _replaced(CommonVariable, value=value):
        yield


@contextlib.contextmanager
def _differentiable_at_zero():
    """While open, the functions of `keras.ops` that optimizers use have finite derivatives."""
    stock_root, stock_power, stock_norm = keras_numpy.sqrt, keras_numpy.power, keras_linalg.norm

    def square_root(x):
        x = keras_backend.convert_to_tensor(x)
        return _square_root(x) if tf.as_dtype(x.dtype).is_floating else stock_root(x)

    def power(x1, x2):
        x1, x2 = keras_backend.convert_to_tensor(x1), keras_backend.convert_to_tensor(x2)
        same = x1.dtype == x2.dtype and tf.as_dtype(x1.dtype).is_floating
        return _power(x1, x2) if same else stock_power(x1, x2)

    def norm(x, ord=None, axis=None, keepdims=False):
        zero = tf.reduce_all(tf.equal(x, 0), axis, keepdims=True)
        length = stock_norm(tf.where(zero, tf.ones_like(x), x), ord, axis, keepdims)
        return tf.where(tf.reshape(zero, tf.shape(length)), tf.zeros_like(length), length)

    with (
        _replaced(keras_numpy, sqrt=square_root, power=power),
        _replaced(keras_linalg, norm=norm),
    ):
        yield


def apply_purely(optimizer, slots, gradients, weights):
    """`optimizer.apply` as a pure function of a differentiable kind.

    Args:
        optimizer: An instance of a stock optimizer class with `PureMixin`.
        slots, gradients, weights: Lists of tensors, in the optimizer's order.

    Returns:
        `(weights, slots)`, the new values.
    """
    with _differentiable_at_zero(), _read_when_used():
        return optimizer.stateless_apply(slots, gradients, weights)


def variable_key(optimizer, variable):
    """What an optimizer knows a variable by."""
    return optimizer._var_key(variable)
