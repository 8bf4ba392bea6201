"""Building a compiled model's variables, and rebuilding the model with new weights."""

import contextlib
import random

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import plain
from keras_fds.functional.redraw import redrawn_values
from keras_fds.internals import keras_layers, keras_models, keras_optimizers


def build_compiled(model, batch):
    """Creates all variables of a compiled model from the specs of a batch."""
    keras_models.build_model(model, plain(batch))
    if not model.trainable_variables:
        raise ValueError(
            f"All weights of {model.name!r} are frozen: there is nothing to train. Set "
            "`layer.trainable = True` for some layers, and compile with a new HyperOptimizer."
        )
    built_for = keras_optimizers.trained_variables(model.optimizer)
    if [id(v) for v in built_for] != [id(v) for v in model.trainable_variables]:
        raise ValueError(
            f"The optimizer was built for weights other than those of {model.name!r}: for another "
            "model, or before layers were frozen. Compile the model with a new HyperOptimizer."
        )


@contextlib.contextmanager
def keeping_random_state():
    """Afterwards `random` and `numpy.random` go on as if nothing had been drawn."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextlib.contextmanager
def seeded(seed):
    """While open, `random` and `numpy.random`, and so Keras's initialisers, draw from a seed."""
    with keeping_random_state():
        random.seed(seed)
        np.random.seed(seed)
        yield


class NotRebuilt(ValueError):
    """Keras cannot rebuild a model from its config."""


def fresh_model(model, inputs, make=None):
    """A new model of the same architecture with newly drawn weights.

    `make` makes it, or else Keras rebuilds it, or raises `NotRebuilt`. `inputs` are specs.
    """
    try:
        twin = keras_models.rebuilt(model) if make is None else make()
        if not isinstance(twin, keras.Model):
            raise ValueError(
                f"`initial_weights` must return a newly made keras.Model. Received: {twin!r}"
            )
        if not twin.built:
            keras_models.build_variables(twin, inputs)
    except Exception as error:
        if make is not None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise NotRebuilt(f"{type(error).__name__}: {reason}") from error
    shapes, expected = ([tuple(v.shape) for v in m.variables] for m in (twin, model))
    if make is None and shapes != expected:
        raise NotRebuilt(f"Its config gives another model, with variables {shapes}.")
    if twin is model or shapes != expected:
        what = "the model itself" if twin is model else f"one with variables {shapes}"
        raise ValueError(
            f"A new model for {model.name!r} must be another model with variables {expected}. "
            f"Received: {what}"
        )
    return twin


def values_from(model, inputs, make, variables):
    """The values of a model's variables in a new model that a function makes."""
    twin = fresh_model(model, inputs, make)
    value_of = {id(v): value for v, value in zip(model.variables, twin.variables)}
    return [value_of[id(variable)] for variable in variables]


def draw_weights(model, inputs, variables):
    """New values for variables that training changes: rebuilds the model, or draws in place."""
    state = random.getstate()
    try:
        return values_from(model, inputs, None, variables)
    except NotRebuilt as error:
        random.setstate(state)
        try:
            value_of = redrawn_values(model, variables)
        except ValueError as reason:
            raise ValueError(
                f"The weights of {model.name!r} cannot be redrawn. {reason}; and Keras cannot "
                f"rebuild the model from its config ({error}). Pass `initial_weights=` a function "
                "that returns a newly made model, or `initial_weights='same'` to restart every "
                "outer step from the present weights."
            ) from error
    return [value_of[id(variable)] for variable in variables]


def pretrained_layers(model, variables, values):
    """The names of the layers whose variables do not look like newly drawn values."""
    suspects = []
    for variable, value in zip(variables, values):
        if not tf.as_dtype(variable.dtype).is_floating:
            continue
        mine, drawn = (keras.ops.convert_to_numpy(v).astype("float64") for v in (variable, value))
        spread, expected = np.abs(mine).max(initial=0.0), np.abs(drawn).max(initial=0.0)
        if drawn.size < 2 or np.array_equal(mine, drawn):  # One number tells nothing.
            continue
        constant = np.ptp(drawn) == 0
        if constant or (drawn.size > 100 and not expected / 2 < spread < 2 * expected):
            suspects.append(variable)
    ids = {id(variable) for variable in suspects}
    return [
        layer.name
        for layer in keras_layers.layers_of(model)
        if any(id(variable) in ids for variable in keras_layers.own_variables(layer))
    ]
