"""The outer loop, with the mode made of NumPy."""

import itertools

import keras
import numpy as np
import pytest

import keras_fds
from keras_fds.outer import SignDescent
from tests.numpy_mode import NumpyMode, arrays, make_model


class Spy(SignDescent):
    """The paper's rule, which remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def propose(self, observations, problem):
        self.seen = observations
        return super().propose(observations, problem)


def search(model, mode=None, **arguments):
    x, y = arrays()
    defaults = {
        "batch_size": 10,
        "validation_split": 0.2,
        "outer_steps": 2,
        "seed": 1,
        "verbose": 0,
    }
    mode = NumpyMode() if mode is None else mode
    return keras_fds.fit(model, x, y, differentiation=mode, **{**defaults, **arguments})


class Recording(NumpyMode):
    """Remembers the hypergradients by the values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def hypergradients(self):
        self.found.append(super().hypergradients())
        return self.found[-1]


def test_rules_see_true_derivatives_by_coordinates_and_records_hold_means():
    model, mode = make_model(compiled=False), Recording()
    rate = keras_fds.Hyperparameter("learning_rate", 2, [0.05, 0.02], scale="log")
    momentum = keras_fds.Hyperparameter("momentum", 1, 0.3)
    optimizer = keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), [rate, momentum], Spy())
    model.compile(optimizer, loss="mse")
    search(model, mode, outer_steps=1)
    (observation,), by_values = optimizer.outer.seen, mode.found[0]
    np.testing.assert_allclose(observation.coordinates, [np.log(0.05), np.log(0.02), 0.3])
    np.testing.assert_allclose(
        observation.hypergradients, by_values * [0.05, 0.02, 1.0], rtol=1e-12
    )
    record = optimizer.search.records[0]
    reported = [*record.hypergradients["learning_rate"], *record.hypergradients["momentum"]]
    np.testing.assert_allclose(reported, observation.hypergradients / [3, 2, 5], rtol=1e-12)
    assert (record.status, record.outcome, observation.broke_down) == ("measured", "best", False)
    assert record.val_loss_error == observation.loss_error


def test_schedules_move_between_outer_steps_by_the_rule():
    model = make_model(outer=Spy())
    search(model, outer_steps=3)
    records = model.optimizer.search.records
    largest = {"learning_rate": np.inf, "momentum": 0.999}
    for before, after in itertools.pairwise(records):
        for name, values in before.values.items():
            sizes = {"learning_rate": [0.1, 0.05, 0.025], "momentum": [0.3, 0.15, 0.075]}[name]
            steps = np.abs(np.array(after.values[name]) - values)
            at_ends = np.isin(after.values[name], [0.0, largest[name]])
            assert np.all(at_ends | np.isclose(steps[:, None], sizes).any(axis=1))
            falls = np.sign(np.array(values) - after.values[name])
            assert np.all(at_ends | (falls == np.sign(before.hypergradients[name])))


class Break(keras.callbacks.Callback):
    """Ruins the weights in some outer steps."""

    def __init__(self, outer_steps):
        super().__init__()
        self.outer_steps = outer_steps

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in self.outer_steps:
            self.model.set_weights([np.nan * weight for weight in self.model.get_weights()])


@pytest.mark.filterwarnings("ignore:Outer step")
def test_a_break_down_is_recorded_as_one_and_the_best_stays():
    model = make_model(outer=Spy())
    history = search(model, callbacks=[Break([1])], outer_steps=3, initial_weights="same")
    first, second, _ = model.optimizer.search.records
    assert (first.status, second.status) == ("measured", "broke_down")
    assert (second.outcome, second.hypergradients) == ("rejected", None)
    assert np.isnan(history.history["val_loss"][1])
    assert model.optimizer.outer.seen[1].broke_down
    assert model.optimizer.search.best.outer_step != 1


@pytest.mark.filterwarnings("ignore:Outer step", "ignore:The search ends")
def test_where_all_break_down_the_start_weights_stay():
    model = make_model()
    start = model.get_weights()
    search(model, callbacks=[Break(range(9))], outer_steps=3)
    assert model.optimizer.search.best is None
    np.testing.assert_array_equal(model.get_weights()[0], start[0])


def test_afterwards_the_best_outer_steps_weights_and_schedules_are_there():
    class Best(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if self.model.optimizer.search.records[-1].outcome == "best":
                self.weights, self.values = self.model.get_weights(), self.model.optimizer.values

    model, best = make_model(), Best()
    search(model, callbacks=[best], outer_steps=4, epochs=[1, 2, 2, 2])
    np.testing.assert_array_equal(model.get_weights()[0], best.weights[0])
    for name, values in best.values.items():
        np.testing.assert_array_equal(model.optimizer.values[name], values)
    assert model.optimizer.horizon == 10
    assert model.optimizer.iterations == 0


def test_an_interrupt_within_the_first_outer_step_leaves_the_start_weights():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = make_model()
    start = model.get_weights()
    with pytest.raises(KeyboardInterrupt):
        search(model, callbacks=[Interrupt()])
    np.testing.assert_array_equal(model.get_weights()[0], start[0])
    assert not model.optimizer.searching
