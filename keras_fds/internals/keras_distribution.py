"""Internals of Keras's variables under tf.distribute."""

import contextlib

import tensorflow as tf

from keras_fds.internals import keras_layers, tf_distribution


def scope_of(model):
    """The scope of the strategy that a model was made in, or of none."""
    strategy = model._distribute_strategy
    return tf_distribution.outside_of_scopes() if strategy is None else strategy.scope()


def strategies_of(model):
    """The strategies of a model, its `HyperOptimizer` and the optimizer in that."""
    with tf_distribution.outside_of_scopes():
        of_model = model._distribute_strategy or tf.distribute.get_strategy()
    optimizers = model.optimizer, model.optimizer.optimizer
    return [of_model, *(each._distribution_strategy for each in optimizers)]


@contextlib.contextmanager
def on_first_device(model, strategy, variables):
    """While open, Keras variables stand for their copy on the first device of this process.

    Afterwards all copies have its value. The strategy is the model's own for as long.
    """
    copied = [
        (v, v.value) for v in variables if isinstance(v.value, tf.distribute.DistributedValues)
    ]
    for variable, copies in copied:
        variable._value = strategy.experimental_local_results(copies)[0]
    try:
        with keras_layers.replaced(model, _distribute_strategy=strategy):
            yield
    finally:
        for variable, copies in copied:
            value = variable._value.read_value()
            variable._value = copies
            if copies.synchronization == tf.VariableSynchronization.ON_READ:
                # A metric's: what is read is the sum of all replicas' copies.
                value = tf.cast(value / strategy.num_replicas_in_sync, value.dtype)
            # One by one: an assignment to all would end with a transfer.
            for copy in strategy.experimental_local_results(copies):
                copy.assign(value)
