"""Fingerprints of a search's model and data, the same in every process."""

import json
import zlib

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import ArrayBatches
from keras_fds.internals import keras_layers

# Entries that may change when the same program makes the same model again.
_OF_THE_OBJECT = ("name", "seed", "build_config", "registered_name", "module")


def search_fingerprint(model, train, validation, initial_weights, validation_batch_size):
    """`{name: value}` of the arguments of `fit` that are not plain numbers."""
    from_function = not isinstance(initial_weights, str)
    return {
        "hyper_optimizer": optimizer_fingerprint(model.optimizer),
        "model": model_fingerprint(model),
        "data": data_fingerprint(train),
        "validation_data": validation and data_fingerprint(validation),
        "validation_batch_size": validation_batch_size,
        "initial_weights": "a function" if from_function else initial_weights,
    }


def optimizer_fingerprint(optimizer):
    """The settings of a `HyperOptimizer`, without the names that Keras numbers."""
    config = optimizer.get_config()
    for each in (config, config["optimizer"]["config"]):
        each.pop("name", None)
    return config


def model_fingerprint(model):
    """A checksum of a model's layers with their settings, and its loss; not of its weights."""
    layers = [
        type(layer).__name__ if isinstance(layer, keras.Model) else _described(layer)
        for layer in keras_layers.layers_of(model)
    ]
    metrics = {id(variable) for variable in model.metrics_variables}
    shapes = [tuple(v.shape) for v in model.variables if id(v) not in metrics]
    return checksum([layers, shapes, model.loss])


def data_fingerprint(batches):
    """A checksum of arrays, or the shapes and dtypes of a dataset's batches."""
    if not isinstance(batches, ArrayBatches):
        return str(tf.nest.flatten(batches.spec))
    return checksum([each for each in tf.nest.flatten(batches.data) if each is not None])


def checksum(structure):
    """A checksum of a structure of numbers, arrays, and objects with configs."""
    return f"{zlib.crc32(json.dumps(_plain(structure), sort_keys=True).encode()):08x}"


def _described(thing):
    """The class of an object and, if it has them, its settings."""
    kind = getattr(thing, "__name__", type(thing).__name__)
    try:
        return [kind, thing.get_config()]
    except Exception:  # Whatever a layer of the user's own raises.
        return kind


def _plain(value):
    """A structure that JSON can hold."""
    if isinstance(value, dict):
        return {str(k): _plain(each) for k, each in value.items() if k not in _OF_THE_OBJECT}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.ndarray, np.generic)) or keras.ops.is_tensor(value):
        array = np.asarray(value)
        numbers = zlib.crc32(np.ascontiguousarray(array)) if array.dtype.kind in "biufV" else None
        return [array.shape, str(array.dtype), numbers]
    return _plain(_described(value))
