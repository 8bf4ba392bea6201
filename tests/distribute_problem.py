"""What the processes of `distribute_test.py` compute, and one process alone."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

import keras_fds
from keras_fds.differentiation import Forward
from keras_fds.outer import BayesianOptimization
from tests import small_problem
from trainers import networks

MODES = ("forward", "reverse", "tangents")


class InRounds(BayesianOptimization):
    """Proposes one by one what it proposes for rounds of two."""

    def propose(self, observations, problem):
        begin = 0
        while proposals := self.propose_several(observations[:begin], problem, 2):
            if begin + len(proposals) > len(observations):
                return proposals[len(observations) - begin]
            begin += len(proposals)
        return None


def model(strategy=None, outer=None):
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        return small_problem.make_model(num_buckets=3, initial=0.05, outer=outer)


def hypergradients(mode, strategy=None):
    """`{name: list}`, of batches of seven and a last one of four."""
    x, y = small_problem.arrays()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(7)
    by_mode = Forward(parallel="tangents") if mode == "tangents" else mode
    found = keras_fds.hypergradients(model(strategy), data, data, differentiation=by_mode)
    return {name: values.tolist() for name, values in found.items()}


def lenet(strategy=None):
    """`{name: list}`, the schedules that LeNet learns in five outer steps, and the history."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(400, 28, 28, 1)), rng.integers(0, 10, 400)
    with strategy.scope() if strategy else contextlib.nullcontext():
        keras.utils.set_random_seed(0)
        trained = networks.build("lenet", (28, 28, 1), 10)
        optimizer = keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(),
            [
                keras_fds.Hyperparameter("learning_rate", num_buckets=5),
                keras_fds.Hyperparameter("momentum"),
                keras_fds.Hyperparameter("weight_decay"),
            ],
        )
        trained.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = keras_fds.fit(
        trained,
        x,
        y,
        batch_size=65,
        validation_split=0.2,
        validation_batch_size=40,
        outer_steps=5,
        seed=0,
        verbose=0,
    )
    learned = {name: values.tolist() for name, values in optimizer.values.items()}
    return {**history.history, **learned}


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
    return found(trained, history)


def rounds(strategy=None, **arguments):
    """The same of two searches: outer steps in rounds of two, by workers or one after another."""
    x, y = small_problem.arrays()
    every = []
    for lengths in ({"outer_steps": 4, "epochs": 1}, {"budget": 6, "epochs": 10}):
        outer = None if strategy else InRounds()
        trained = model(strategy, outer)
        history = keras_fds.fit(
            trained,
            x,
            y,
            batch_size=11,
            validation_split=0.2,
            differentiation="reverse",
            seed=0,
            verbose=0,
            **lengths,
            **arguments,
        )
        every.append(found(trained, history))
    return every


def rounds_of_dataset(strategy, callbacks=(), verbose=0):
    """The same of a search in rounds, on a dataset that shuffles in every pass."""
    x, y = small_problem.arrays()
    examples = tf.data.Dataset.from_tensor_slices((x, y))
    trained = model(strategy)
    history = keras_fds.fit(
        trained,
        examples.take(40).shuffle(40, seed=1).batch(11),
        validation_data=examples.skip(40).batch(20),
        epochs=10,
        budget=6,
        differentiation="reverse",
        parallel="outer_steps",
        callbacks=list(callbacks),
        seed=0,
        verbose=verbose,
    )
    return found(trained, history)


def found(trained, history):
    """The history, the schedules and the sums of the weights, as JSON holds them."""
    return {
        **history.history,
        **{name: values.tolist() for name, values in trained.optimizer.values.items()},
        "weights": [float(np.sum(weight)) for weight in trained.get_weights()],
    }
