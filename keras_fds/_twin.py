"""A float64 model beside the user's, which stays as it is."""

import contextlib
import random

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _keras, _models


@contextlib.contextmanager
def float64():
    """Float64 by default, and the state of Python's and NumPy's generators put back after."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    states = random.getstate(), np.random.get_state()
    try:
        keras.config.set_floatx("float64")
        keras.config.set_dtype_policy("float64")
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)
        random.setstate(states[0])
        np.random.set_state(states[1])


def in_float64(dataset):
    """A dataset whose floats are float64; those of a `PyDataset` become `floatx` anyway."""
    if isinstance(dataset, keras.utils.PyDataset):
        return dataset

    def cast(tensor):
        return tf.cast(tensor, "float64") if tensor.dtype.is_floating else tensor

    return dataset.map(lambda *batch: tf.nest.map_structure(cast, batch))


def float64_twin(model, make_model, spec):
    """A float64 model of the same architecture, values and schedules, compiled alike."""
    try:
        twin = _keras.rebuilt_in_float64(model) if make_model is None else make_model()
    except Exception as error:
        if make_model is not None:
            raise
        raise ValueError(
            f"The model {model.name!r} cannot be rebuilt in float64: {type(model).__name__} lacks "
            "a `get_config` from which Keras can rebuild it. Pass `make_model=` a function that "
            f"returns a newly made model. ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(twin, keras.Model) or twin is model:
        raise ValueError(f"`make_model` must return a newly made keras.Model. Received: {twin!r}")
    arguments = _keras.losses_in_float64(twin if twin.compiled else model)
    optimizer = model.optimizer
    twin_optimizer = type(optimizer).from_config(optimizer.get_config())
    twin.compile(optimizer=twin_optimizer, **arguments)
    _build(twin, spec, make_model)
    twin_optimizer.outer_state = {"values": optimizer.outer_state["values"]}
    if model.built:
        _copy_values(model, twin)
    return twin


def _build(twin, spec, make_model):
    try:
        with _keras.twice_differentiable():
            _models.build(twin, spec)
    except Exception as error:
        if make_model is not None:
            raise
        raise ValueError(
            f"The model {twin.name!r} was rebuilt in float64 from its config, but cannot be built. "
            "Pass `make_model=` a function that returns a newly made model. "
            f"({type(error).__name__}: {error})"
        ) from error


def _copy_values(model, twin):
    shapes, expected = ([tuple(v.shape) for v in m.variables] for m in (twin, model))
    if shapes != expected:
        raise ValueError(
            f"A new model for {model.name!r} must have variables {expected}. Received: {shapes}. "
            "Pass `make_model=` a function that returns a newly made model."
        )
    for mine, other in zip(twin.variables, model.variables):
        value = other.numpy()
        mine.assign(value.astype("float64") if tf.as_dtype(mine.dtype).is_floating else value)
