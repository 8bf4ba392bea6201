"""Numbers of stock Keras optimizers that follow schedules, against the HyperOptimizer."""

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds.export.snippet import ScheduledNumber, piecewise_constant
from tests import small_problem

EPOCHS = 3
BATCH_SIZE = 10
HORIZON = EPOCHS * small_problem.NUM_EXAMPLES // BATCH_SIZE

# Name of a class, its arguments, values of buckets.
CASES = [
    ("SGD", {}, {"momentum": [0.0, 0.9], "weight_decay": [0.1, 0.0, 0.02]}),
    ("SGD", {"nesterov": True}, {"learning_rate": [0.3, 0.1], "momentum": [0.0, 0.9, 0.5]}),
    ("SGD", {"clipvalue": 1.0}, {"clipvalue": [0.1, 0.01]}),
    ("SGD", {"clipnorm": 1.0}, {"clipnorm": [0.1, 0.01]}),
    ("SGD", {"global_clipnorm": 1.0}, {"global_clipnorm": [0.1, 0.01]}),
    ("RMSprop", {"centered": True}, {"rho": [0.5, 0.9], "momentum": [0.0, 0.5]}),
    ("Adam", {}, {"beta_1": [0.5, 0.9], "beta_2": [0.8, 0.9], "epsilon": [1e-3, 1e-5]}),
    ("AdamW", {}, {"learning_rate": [0.03, 0.01, 0.02], "weight_decay": [0.5, 0.0]}),
    ("Ftrl", {}, {"beta": [0.8, 0.9], "l1_regularization_strength": [0.1, 0.01]}),
    ("Muon", {}, {"momentum": [0.8, 0.9], "muon_a": [3.0, 3.4]}),
    ("Adafactor", {}, {"clip_threshold": [0.8, 0.9], "beta_2_decay": [-0.8, -0.7]}),
]
IDS = ["-".join([kind, *values]) for kind, _, values in CASES]


def trained(optimizer, **compile_arguments):
    """The weights of the small network after training from the same start, in turn."""
    keras.utils.set_random_seed(0)
    model = small_problem.make_model(compiled=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **compile_arguments)
    x, y = small_problem.arrays()
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def scheduled(kind, arguments, values):
    optimizer = getattr(keras.optimizers, kind)(**arguments)
    for name, each in values.items():
        schedule = piecewise_constant(each, HORIZON)
        if name == "learning_rate":
            optimizer.learning_rate = schedule
        else:
            setattr(optimizer, name, ScheduledNumber(schedule, optimizer))
    return optimizer


def learned(kind, arguments, values):
    hyperparameters = [
        keras_fds.Hyperparameter(name, len(each), each, min_value=min(each))
        for name, each in values.items()
    ]
    return keras_fds.HyperOptimizer(getattr(keras.optimizers, kind)(**arguments), hyperparameters)


def largest_difference(model, other):
    pairs = zip(model.get_weights(), other.get_weights())
    return max(np.abs(mine - its).max() for mine, its in pairs)


@pytest.mark.sweep("SGD-momentum-weight_decay", "Adam-beta_1-beta_2-epsilon")
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_trains_as_the_hyper_optimizer_does(case):
    expected = trained(learned(*case))
    assert largest_difference(trained(scheduled(*case)), expected) < 1e-6
    constant = {name: [values[0]] for name, values in case[2].items()}
    assert largest_difference(trained(learned(*case[:2], constant)), expected) > 1e-5


def test_several_steps_an_execution_change_nothing():
    expected = trained(learned(*CASES[0]))
    model = trained(scheduled(*CASES[0]), steps_per_execution=4)
    assert largest_difference(model, expected) < 1e-6


def test_a_momentum_that_is_set_while_training_goes_unseen():
    """Why a callback that sets `optimizer.momentum` is not enough."""

    class Callback(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.model.optimizer.momentum = 0.9

    model = small_problem.make_model(compiled=False)
    model.compile(keras.optimizers.SGD(momentum=0.1), "mse")
    x, _ = small_problem.arrays()
    weights = model.get_weights()
    model.fit(x, x[:, :3], verbose=0)
    after = []
    for callbacks in ([], [Callback()]):
        model.set_weights(weights)
        for variable in model.optimizer.variables[2:]:
            variable.assign(variable * 0)
        model.fit(x, x[:, :3], batch_size=10, shuffle=False, callbacks=callbacks, verbose=0)
        after.append(model.get_weights())
    for weights, others in zip(*after):
        np.testing.assert_array_equal(weights, others)


def test_model_saves_with_the_last_values(tmp_path):
    model = trained(scheduled(*CASES[0]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.momentum == 0.9
    assert loaded.optimizer.weight_decay == 0.02
    for mine, its in zip(model.optimizer.variables, loaded.optimizer.variables):
        np.testing.assert_array_equal(mine, its)
