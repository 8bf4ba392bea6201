"""What a training step assigns is part of its state, or is refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds

X = np.random.default_rng(0).normal(size=(20, 6, 4)).astype("float32")
Y = X[:, 0, :1]


def compiled(*layers, shape=(6, 4)):
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *layers])
    learned = [keras_fds.Hyperparameter("learning_rate", 2, 0.01)]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), learned), "mse")
    return model


def fit(model, **arguments):
    return keras_fds.fit(model, X, Y, batch_size=4, validation_split=0.2, verbose=0, **arguments)


class Counting(keras.layers.Layer):
    def __init__(self, where, **keywords):
        super().__init__(**keywords)
        self.steps, self.where = tf.Variable(0.0, trainable=False, name="steps"), where

    def call(self, x, training=False):
        if training and self.where == "call":
            self.steps.assign_add(1.0)
        if training and self.where == "condition":
            tf.cond(self.steps < 5, lambda: self.steps.assign_add(1.0), lambda: self.steps + 0)
        return x * 1.0


@pytest.mark.parametrize(("where", "named"), [("call", "steps"), ("condition", "cond")])
def test_a_tensorflow_variable_that_a_step_assigns_is_refused_by_name(where, named):
    with pytest.raises(ValueError, match=rf"assigns the tf.Variable .*{named}.*add_weight"):
        fit(compiled(Counting(where), keras.layers.Dense(1)))


def test_a_layer_that_assigns_its_trainable_weight_is_refused_by_name():
    spectral = keras.layers.SpectralNormalization(keras.layers.Dense(1))
    with pytest.raises(ValueError, match=r"assigns its trainable weight 'sequential.*kernel"):
        fit(compiled(spectral))


class Fading(keras.layers.Layer):
    """Keeps a variable that it does not track; a number of its training steps depends on it."""

    def __init__(self, strength, **keywords):
        super().__init__(**keywords)
        self.hidden = {"strength": strength}

    def call(self, x, training=False):
        if training:
            self.hidden["strength"].assign(self.hidden["strength"] * 0.9)
        return x * self.hidden["strength"]


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_variable_outside_of_the_model_is_state_and_starts_over_every_outer_step(mode):
    strength = keras.Variable(1.0, trainable=False, name="strength")
    model = compiled(Fading(strength), keras.layers.Dense(1))
    fit(model, outer_steps=2, initial_weights="same", differentiation=mode)
    np.testing.assert_allclose(strength.numpy(), 0.9**4, rtol=1e-6)


def test_what_is_assigned_outside_of_the_model_is_as_before_after_hypergradients():
    strength = keras.Variable(1.0, trainable=False, name="strength")
    model = compiled(Fading(strength), keras.layers.Dense(1))
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    forward = keras_fds.hypergradients(model, data.take(4), data.skip(4))
    assert strength.numpy() == 1.0
    reverse = keras_fds.hypergradients(model, data.take(4), data.skip(4), differentiation="reverse")
    np.testing.assert_allclose(forward["learning_rate"], reverse["learning_rate"], rtol=1e-4)


def test_hypergradients_of_a_stateful_layer_are_exact_in_both_modes():
    """Its state carries derivatives, in training and from batch to batch of the validation."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(4, 6, 4)),
            keras.layers.SimpleRNN(3, stateful=True),
            keras.layers.Dense(1),
        ]
    )
    learned = [keras_fds.Hyperparameter("learning_rate", 2, 0.1)]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), learned), "mse")
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    check = keras_fds.check_hypergradients(model, data.take(3), data.skip(3), verbose=False)
    assert check.passed, check
    reverse = keras_fds.hypergradients(
        model, data.take(3), data.skip(3), dtype="float64", differentiation="reverse"
    )
    np.testing.assert_allclose(reverse["learning_rate"], check.forward["learning_rate"], rtol=1e-8)
