"""Averaged weights and accumulated gradients: the training is that of stock `model.fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds

HORIZON, BATCH = 6, 10
RATES = [0.2, 0.3, 0.1]
CASES = {
    "accumulated": (
        lambda: keras.optimizers.SGD(gradient_accumulation_steps=2, global_clipnorm=1.0),
        {"learning_rate": RATES, "momentum": [0.6], "weight_decay": [0.1]},
    ),
    "averaged": (
        lambda: keras_fds.optimizers.SGD(use_ema=True),
        {"learning_rate": RATES, "ema_momentum": [0.8]},
    ),
    "overwritten": (
        lambda: keras.optimizers.AdamW(
            use_ema=True, ema_overwrite_frequency=2, gradient_accumulation_steps=2
        ),
        {"learning_rate": RATES, "beta_1": [0.6], "ema_momentum": [0.8]},
    ),
}


class Problem:
    """A dense layer and its data."""

    def __init__(self, case):
        make_optimizer, self.values = CASES[case]
        learned = [
            keras_fds.Hyperparameter(name, len(values), values, min_value=1e-9)
            for name, values in self.values.items()
        ]
        self.model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
        self.optimizer = keras_fds.HyperOptimizer(make_optimizer(), learned)
        self.model.compile(self.optimizer, loss="mse")
        rng = np.random.default_rng(0)
        self.x, self.y = rng.normal(size=(80, 4)), rng.normal(size=(80, 3))
        self.start = [rng.normal(size=v.shape) for v in self.model.trainable_variables]
        self.model.set_weights(self.start)
        data = tf.data.Dataset.from_tensor_slices((self.x, self.y)).batch(BATCH)
        self.train, self.validation = data.take(HORIZON), data.skip(HORIZON)

    def loss_of_stock_fit(self, coordinates):
        """The validation loss after stock `model.fit` with other values."""
        if self.optimizer.built:
            self.optimizer.reset_slots()
        self.model.set_weights(self.start)
        self.optimizer.coordinates = coordinates
        size = HORIZON * BATCH
        x, y = self.x, self.y
        self.model.fit(x[:size], y[:size], batch_size=BATCH, shuffle=False, verbose=0)
        return self.model.evaluate(x[size:], y[size:], batch_size=BATCH, verbose=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_hypergradients_are_those_of_stock_fit(case):
    problem = Problem(case)
    found = [
        keras_fds.hypergradients(
            problem.model, problem.train, problem.validation, differentiation=mode
        )
        for mode in ("forward", "reverse")
    ]
    coordinates = problem.optimizer.coordinates
    differences = []
    for position in range(len(coordinates)):
        ends = []
        for sign in (1, -1):
            moved = coordinates.copy()
            moved[position] += sign * 1e-5
            ends.append(problem.loss_of_stock_fit(moved))
        differences.append((ends[0] - ends[1]) / 2e-5)
    expected = problem.optimizer.buckets.means(np.array(differences), HORIZON)
    for name in problem.values:
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-10 * scale)
        np.testing.assert_allclose(found[0][name], expected[name], atol=1e-6 * scale)
        assert scale > 1e-5


def test_a_search_ends_with_the_averages_of_its_best_training():
    """As stock `model.fit` does; and its optimizer begins anew."""
    problem = Problem("averaged")
    size = HORIZON * BATCH
    history = keras_fds.fit(
        problem.model,
        problem.x[:size],
        problem.y[:size],
        batch_size=BATCH,
        epochs=1,
        outer_steps=1,
        shuffle=False,
        validation_data=(problem.x[size:], problem.y[size:]),
        initial_weights="same",
        verbose=0,
    )
    best = problem.model.evaluate(problem.x[size:], problem.y[size:], verbose=0)
    assert history.history["val_loss"] == [pytest.approx(best, rel=1e-5)]
    assert problem.loss_of_stock_fit(problem.optimizer.coordinates) == pytest.approx(best, rel=1e-5)
