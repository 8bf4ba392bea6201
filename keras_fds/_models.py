"""Building a compiled model's variables, and rebuilding the model with new weights."""

import contextlib
import random

import keras
import numpy as np

from keras_fds import _keras


def build(model, batch):
    """Creates all variables of a compiled model from the specs of a batch."""
    _keras.build_model(model, batch)
    if not model.trainable_variables:
        raise ValueError(f"All weights of {model.name!r} are frozen: there is nothing to train.")
    built_for = _keras.trained_variables(model.optimizer)
    if [id(v) for v in built_for] != [id(v) for v in model.trainable_variables]:
        raise ValueError(
            f"The optimizer was built for other weights than those of {model.name!r}: for another "
            "model, or before layers were frozen. Compile the model with a new HyperOptimizer."
        )


@contextlib.contextmanager
def seeded(seed):
    """While open, `random` and `numpy.random`, and so Keras's initialisers, draw from a seed."""
    python, legacy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def fresh_model(model, inputs, make=None):
    """A new model of the same architecture with newly drawn weights.

    Args:
        model: A built `keras.Model`.
        inputs: The `tf.TensorSpec`s of its inputs.
        make: A function that returns the new model; by default Keras rebuilds it.

    Raises:
        ValueError: When Keras cannot rebuild the model from its config, or `make` returns
            something else than another model with the same variables.
    """
    try:
        twin = _keras.rebuilt(model) if make is None else make()
        if not isinstance(twin, keras.Model):
            raise ValueError(
                f"`initial_weights` must return a newly made keras.Model. Received: {twin!r}"
            )
        if not twin.built:
            _keras.build_variables(twin, inputs)
    except Exception as error:
        if make is not None:
            raise
        raise ValueError(
            f"The model {model.name!r} cannot be re-initialised: {type(model).__name__} lacks a "
            "`get_config` from which Keras can rebuild it. Write one, or pass `initial_weights=` a "
            "function that returns a newly made model, or `initial_weights='same'` to restart "
            f"every outer step from the present weights. ({type(error).__name__})"
        ) from error
    shapes, expected = ([tuple(v.shape) for v in m.variables] for m in (twin, model))
    if twin is model or shapes != expected:
        what = "the model itself" if twin is model else f"one with variables {shapes}"
        raise ValueError(
            f"A new model for {model.name!r} must be another model with variables {expected}. "
            f"Received: {what}"
        )
    return twin
