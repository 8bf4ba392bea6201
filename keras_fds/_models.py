"""Building a compiled model's variables, and rebuilding the model with new weights.

Beside `_stateless.py` the only file that touches Keras's internals.
"""

import keras
from keras.src import backend as keras_backend
from keras.src.models.functional import Functional

from keras_fds._data import map_structure


def build(model, batch):
    """Creates all variables of a compiled model from the specs of a batch."""
    if not model.built:
        keras_backend.compute_output_spec(model, _keras_tensors(batch[0]), training=False)
    model._symbolic_build(data_batch=_keras_tensors(batch))
    if not model.trainable_variables:
        raise ValueError(f"All weights of {model.name!r} are frozen: there is nothing to train.")
    built_for = model.optimizer._trainable_variables
    if [id(v) for v in built_for] != [id(v) for v in model.trainable_variables]:
        raise ValueError(
            f"The optimizer was built for other weights than those of {model.name!r}: for another "
            "model, or before layers were frozen. Compile the model with a new HyperOptimizer."
        )


def _keras_tensors(specs):
    return map_structure(lambda t: keras.KerasTensor(t.shape, t.dtype.name), specs)


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
        twin = _rebuilt(model) if make is None else make()
        if not isinstance(twin, keras.Model):
            raise ValueError(
                f"`initial_weights` must return a newly made keras.Model. Received: {twin!r}"
            )
        if not twin.built:
            keras_backend.compute_output_spec(twin, _keras_tensors(inputs), training=False)
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


def _rebuilt(model):
    if isinstance(model, (keras.Sequential, Functional)):
        return keras.models.clone_model(model)
    return type(model).from_config(model.get_config())
