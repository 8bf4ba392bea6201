"""What the processes of `distribute_test.py` compute, and one process alone."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

import keras_fds
from keras_fds.differentiation import Forward
from tests import small_problem

MODES = ("forward", "reverse", "tangents")


def model(strategy=None):
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        return small_problem.make_model(num_buckets=3, initial=0.05)


def hypergradients(mode, strategy=None):
    """`{name: list}`, of batches of seven and a last one of four."""
    x, y = small_problem.arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    by_mode = Forward(parallel="tangents") if mode == "tangents" else mode
    found = keras_fds.hypergradients(model(strategy), data, data, differentiation=by_mode)
    return {name: values.tolist() for name, values in found.items()}


def search(strategy=None, callbacks=(), verbose=0):
    """The history, the schedules and the sums of the weights of a search, as JSON holds them."""
    x, y = small_problem.arrays()
    trained = model(strategy)
    history = keras_fds.fit(
        trained,
        x,
        y,
        batch_size=11,
        validation_split=0.2,
        validation_batch_size=7,
        outer_steps=3,
        differentiation="reverse",
        callbacks=list(callbacks),
        seed=0,
        verbose=verbose,
    )
    return {
        **history.history,
        **{name: values.tolist() for name, values in trained.optimizer.values.items()},
        "weights": [float(np.sum(weight)) for weight in trained.get_weights()],
    }
