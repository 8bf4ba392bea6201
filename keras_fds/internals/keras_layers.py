"""Internals of Keras layers: calls on other values of their variables, twice differentiable.

When `tests/internals/keras_test.py` fails, Keras has changed: adapt these files.
"""

import contextlib
import re
import warnings
import weakref
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer import (
    BaseImagePreprocessingLayer,
)
from keras.src.models.functional import Functional

from keras_fds.internals import tf_graph, tf_second_derivatives


@contextlib.contextmanager
def replaced(owner, **attributes):
    stock = {name: getattr(owner, name) for name in attributes}
    for name, value in attributes.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in stock.items():
            setattr(owner, name, value)


@contextlib.contextmanager
def floatx(dtype):
    """While open, a dtype is Keras's default."""
    stock = keras.config.floatx()
    keras.config.set_floatx(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(stock)


# ----------------------------------------------------------------- twice differentiable layers
_told_of = weakref.WeakKeyDictionary()  # What was warned of, by layer or model.


@contextlib.contextmanager
def twice_differentiable(loss_of=None):
    """While open, Keras traces layers so that they differentiate twice.

    TensorFlow's functions with a wrong second derivative are replaced. cuDNN's functions, which
    have none, are not used. A layer with an operation whose gradient has no gradient raises
    `NotTwiceDifferentiable`, which names the layer. A layer that stops gradients or defines its own
    causes a warning, once. `loss_of` is the model whose loss is traced, outside of all layers.
    """
    stock_call, stock_stop = keras.layers.Layer.__call__, tf.stop_gradient
    calling = []  # The layers that are being called, innermost last.

    def stop_gradient(*args, **kwargs):
        if calling:
            _warn_once(calling[-1], named(calling[-1]), _STOPS)
        return stock_stop(*args, **kwargs)

    def tell_of_custom_gradient():
        if calling:
            _warn_once(calling[-1], named(calling[-1]), _DEFINES_ITS_OWN)
        elif loss_of is not None:
            _warn_once(loss_of, f"loss of {loss_of.name!r}", _DEFINES_ITS_OWN)

    def call(layer, *args, **kwargs):
        calling.append(layer)
        own_floatx = keras.config.floatx()
        if own_floatx == "float64" and is_float32_only(type(layer)):
            own_floatx = "float32"
        try:
            with explaining(named(layer)), floatx(own_floatx):
                return stock_call(layer, *args, **kwargs)
        finally:
            calling.pop()

    def no_cudnn(*args, **kwargs):
        raise NotImplementedError

    with contextlib.ExitStack() as stack:
        for module, function in tf_second_derivatives.REPLACEMENTS:
            for owner in tf_second_derivatives.owners(module):
                stack.enter_context(replaced(owner, **{function.__name__: function}))
        stack.enter_context(replaced(tf, stop_gradient=stop_gradient))
        stack.enter_context(tf_graph.telling_of_custom_gradients(tell_of_custom_gradient))
        stack.enter_context(replaced(keras_backend, lstm=no_cudnn, gru=no_cudnn))
        stack.enter_context(replaced(keras_backend.nn, ctc_loss=tf_second_derivatives.ctc_loss))
        stack.enter_context(replaced(keras.layers.Layer, __call__=call))
        yield


_STOPS = (
    "stops gradients (tf.stop_gradient): hypergradients take what it stops as constant. If this is "
    "not intended, write the layer without it."
)
_DEFINES_ITS_OWN = (
    "defines its own gradient (custom_gradient): hypergradients take it as the derivative, in "
    "training and in validation, where finite differences see the function itself."
)


def _warn_once(owner, culprit, what):
    """Warns of what a layer or a model's loss does to gradients; once for each."""
    told = _told_of.setdefault(owner, set())
    if culprit not in told:
        told.add(culprit)
        warnings.warn(
            f"The {culprit} {what} keras_fds.check_hypergradients(model, train_data, "
            "validation_data) measures the effect.",
            stacklevel=3,
        )


def named(layer):
    """The name of a layer in messages."""
    return f"layer {layer.name!r} ({type(layer).__name__})"


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


# Layers on data that Keras computes in float32 only; then the exceptions.
_FLOAT32 = (keras.layers.MelSpectrogram, BaseImagePreprocessingLayer)
_ANY_FLOAT = (keras.layers.Resizing, keras.layers.CenterCrop)


def is_float32_only(kind):
    return issubclass(kind, _FLOAT32) and not issubclass(kind, _ANY_FLOAT)


def is_composition(model):
    """Whether a model only calls its layers and has no code of its own."""
    return isinstance(model, (keras.Sequential, Functional))


def layers_of(model):
    """The model and all layers inside it, at any depth, each once."""
    return list({id(layer): layer for layer in model._flatten_layers()}.values())


@contextlib.contextmanager
def recorded_calls(model):
    """While open, the list it yields gets `(layer, arguments, keywords, outputs)` of eager calls.

    It holds every layer's first call, inner layers first.
    """
    calls, seen = [], set()

    def recorded(layer, stock):
        def call(*arguments, **keywords):
            outputs = stock(*arguments, **keywords)
            tensors = [t for t in tf.nest.flatten((arguments, keywords)) if tf.is_tensor(t)]
            if id(layer) not in seen and all(hasattr(t, "numpy") for t in tensors):
                seen.add(id(layer))
                calls.append((layer, arguments, keywords, outputs))
            return outputs

        return call

    layers = layers_of(model)
    for layer in layers:
        vars(layer)["call"] = recorded(layer, layer.call)
    try:
        yield calls
    finally:
        for layer in layers:
            del vars(layer)["call"]


def own_variables(layer):
    """The variables that a layer keeps itself, without those of the layers inside it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def seed_generators_of(layer):
    """The `keras.random.SeedGenerator`s that a layer keeps itself."""
    return list(layer._seed_generators)


def is_seed(variable):
    """Whether a variable is the state of a seed generator."""
    return variable.name == "seed_generator_state"


def fresh_seed_state(generator):
    """The state of a newly made seed generator."""
    seed = generator._initial_seed
    return keras.random.SeedGenerator(seed).state.numpy()


def replayed_build(layer):
    """Runs a layer's `build` again and leaves the layer unchanged.

    Returns `(variable, shape, dtype, initializer)` for every weight that it adds; the variable is
    the one that it added the first time.
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
        with replaced(keras.layers.Layer, add_weight=add_weight):
            if config is not None:
                layer.build_from_config(config)
    finally:
        vars(layer).clear()
        vars(layer).update(attributes)
    return calls


class RecordingScope(keras.StatelessScope):
    """A stateless scope that also remembers which variables were assigned.

    An assigned value is constant to the tape of the step's gradient, as a variable that is read is
    in Keras. All other tapes and accumulators see how it was computed.
    """

    def __init__(self, *arguments, tape=None, **keywords):
        super().__init__(*arguments, **keywords)
        self.tape, self.written = tape, {}  # The latter `{id: variable}`.

    def add_update(self, update):
        variable, value = update
        self.written[id(variable)] = variable
        if self.tape is not None:
            with self.tape.stop_recording():
                value = tf.identity(value)
        super().add_update((variable, value))


class Called(NamedTuple):
    """The results of a call on other values of the variables."""

    outputs: Any
    added: list  # The losses of `add_loss` and of activity regularizers.
    penalties: list  # Those of the regularizers of weights.
    scope: RecordingScope  # Which knows the values of variables after the call.


def call_layer(layer, state, *arguments, tape=None, **keywords):
    """Calls a layer on other values of its variables; a `Called`."""
    with RecordingScope(state_mapping=state, collect_losses=True, tape=tape) as scope:
        outputs = layer(*arguments, **keywords)
        losses = list(layer.losses)
        first = len(losses) - len(layer._get_regularization_losses())
    return Called(outputs, losses[:first], losses[first:], scope)


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
