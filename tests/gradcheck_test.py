"""`check_hypergradients` passes what is right and names what is wrong."""

import random
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds import Hyperparameter, check_hypergradients


class Stopping(keras.layers.Layer):
    """Computes x² and differentiates it as x²/2."""

    def call(self, x):
        return x * tf.stop_gradient(x)


class WrongRegularizer(keras.regularizers.Regularizer):
    def __call__(self, weight):
        return 0.1 * tf.reduce_sum(weight * tf.stop_gradient(weight))

    def get_config(self):
        return {}


class Subclassed(keras.Model):
    """A model without a `get_config`."""

    def __init__(self, width):
        super().__init__()
        self.hidden = keras.layers.Dense(width, "tanh")
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.hidden(x))

    def get_config(self):
        raise NotImplementedError


def wrong_loss(y, prediction):
    y = tf.one_hot(tf.cast(tf.reshape(y, [-1]), "int32"), 3, dtype=prediction.dtype)
    difference = y - prediction
    return tf.reduce_mean(difference * tf.stop_gradient(difference), -1)


def data(batches=2):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5 * batches, 4)).astype("float32")
    y = x[:, :3].argmax(1)
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(5)


def compiled(model, hyperparameters=None, **arguments):
    hyperparameters = hyperparameters or [Hyperparameter("learning_rate", 1, 0.1)]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), hyperparameters)
    model.compile(optimizer, **{"loss": loss, **arguments})
    return model


def network(*layers, **arguments):
    first = keras.layers.Dense(4, "tanh", **arguments)
    return keras.Sequential([keras.Input((4,)), first, *layers, keras.layers.Dense(3)])


def check(model, **arguments):
    return check_hypergradients(model, data(), data(1), verbose=False, **arguments)


def test_a_right_model_passes_and_is_left_alone(capsys):
    layers = keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)
    hyperparameters = [
        Hyperparameter("learning_rate", 2, 0.0),
        Hyperparameter("weight_decay", 1, 0.01, scale="log"),
    ]
    model = compiled(network(*layers), hyperparameters, metrics=["accuracy"])
    model.fit(data(), verbose=0)
    model.optimizer.schedules = {
        "learning_rate": keras_fds.BucketedSchedule([0.1, 0.0], 2),
        "weight_decay": keras_fds.BucketedSchedule([0.02], 2),
    }
    loss = model.loss
    variables = model.variables + model.optimizer.variables
    before = [variable.numpy() for variable in variables]
    drawn = random.getstate(), np.random.get_state()[1].copy()
    capsys.readouterr()
    result = check_hypergradients(model, data().shuffle(9), data(1))
    assert result.passed, result
    assert capsys.readouterr().out.strip() == str(result)
    assert result.suspects == {}
    assert {name: len(v) for name, v in result.forward.items()} == {
        "learning_rate": 2,
        "weight_decay": 1,
    }
    assert max(errors.max() for errors in result.errors.values()) < 1e-6
    assert str(result).count("right\n") == 3
    for variable, value in zip(variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)
        assert variable.dtype != "float64" or "hyper" in variable.path
    assert (keras.config.floatx(), keras.config.dtype_policy().name) == ("float32", "float32")
    assert model.loss is loss
    assert loss.dtype == "float32"
    assert random.getstate() == drawn[0]
    np.testing.assert_array_equal(np.random.get_state()[1], drawn[1])


@pytest.mark.sweep()
def test_it_checks_what_hypergradients_computes():
    model = compiled(network())
    expected = keras_fds.hypergradients(model, data(), data(1))
    np.testing.assert_allclose(
        check(model).forward["learning_rate"], expected["learning_rate"], rtol=1e-4
    )


def test_a_layer_that_stops_gradients_is_named():
    result = check(compiled(network(Stopping(name="culprit"))))
    assert not result.passed
    assert list(result.suspects) == ["layer 'culprit' (Stopping)"]
    assert result.verdicts["learning_rate"] == ["WRONG"]
    assert "At fault: the layer 'culprit' (Stopping)" in str(result)


@keras.saving.register_keras_serializable("tests")
class TooSteep(keras.layers.Layer):
    def call(self, inputs):
        @tf.custom_gradient
        def sine(x):
            return tf.sin(x), lambda upstream: 1.3 * upstream * tf.cos(x)

        return sine(inputs)


def test_a_layer_with_a_wrong_first_derivative_is_named():
    result = check(compiled(network(TooSteep(name="culprit"))))
    assert list(result.suspects) == ["layer 'culprit' (TooSteep)"]


@pytest.mark.sweep()
def test_resizing_is_checked_in_float64():
    x, y = np.random.default_rng(0).normal(size=(20, 6, 6, 1)), np.zeros(20, "int64")
    dataset = tf.data.Dataset.from_tensor_slices((x.astype("float32"), y)).batch(5)
    layers = [keras.layers.Conv2D(2, 3), keras.layers.Resizing(3, 3), keras.layers.Flatten()]
    model = compiled(keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(3)]))
    assert check_hypergradients(model, dataset.take(3), dataset.skip(3), verbose=False).passed


def test_a_regularizer_that_stops_gradients_is_named():
    result = check(compiled(network(kernel_regularizer=WrongRegularizer())))
    (suspect,) = result.suspects
    assert suspect.startswith("regularizer of ")


@pytest.mark.sweep()
def test_a_loss_that_stops_gradients_is_named():
    result = check(compiled(network(), loss=wrong_loss))
    assert list(result.suspects) == ["loss 'wrong_loss'"]


@pytest.mark.sweep()
def test_moments_called_directly_are_right():
    def normalised(x):
        mean, variance = tf.nn.moments(x, [0])
        return (x - mean) / tf.sqrt(variance + 0.1)

    assert check(compiled(network(keras.layers.Lambda(normalised)))).passed


def test_mixed_precision_is_checked_in_float64():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = compiled(network())
    finally:
        keras.config.set_dtype_policy("float32")
    model.build((None, 4))
    result = check(model)
    assert result.passed
    assert result.errors["learning_rate"][0] < 1e-6


def test_a_model_without_config_needs_make_model():
    model = compiled(Subclassed(4))
    model(np.ones((1, 4)))
    with pytest.raises(ValueError, match="with `make_model=`, a function"):
        check(model)
    assert check(model, make_model=lambda: Subclassed(4)).passed
    with pytest.raises(ValueError, match="must have variables"):
        check(model, make_model=lambda: Subclassed(5))
    with pytest.raises(ValueError, match="`make_model` must return"):
        check(model, make_model=lambda: model)


def test_a_kink_is_told_from_a_wrong_derivative():
    def kinked(y, prediction):
        # Before the first step |w − w₀| has a kink where the learning rate is zero.
        return tf.abs(tf.reduce_sum(prediction, -1))

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    compiled(model, [Hyperparameter("learning_rate", 1, 0.5)], loss=kinked)
    model.set_weights([np.array([[0.5]])])
    ones = tf.data.Dataset.from_tensors((np.ones((1, 1)), np.ones((1, 1))))
    result = check_hypergradients(model, ones, ones, verbose=False)
    assert not result.passed
    assert result.verdicts == {"learning_rate": ["not smooth here"]}
    assert "finite differences cannot tell" in str(result)


def test_bad_input_is_refused_with_a_sentence():
    model = compiled(network())
    with pytest.raises(ValueError, match="must be finite tf.data.Datasets"):
        check_hypergradients(model, np.ones((3, 4)), data())
    with pytest.raises(ValueError, match="infinite length"):
        check_hypergradients(model, data().repeat(), data())
    with pytest.raises(ValueError, match="learns no hyperparameter"):
        empty = keras_fds.HyperOptimizer(keras_fds.optimizers.SGD(), [])
        model.compile(empty, loss="mse")
        check(model)
    assert keras.config.floatx() == "float32"


def test_a_layer_that_stops_gradients_is_warned_of_once_in_training():
    model = compiled(network(Stopping(name="culprit")))
    with pytest.warns(UserWarning, match=r"layer 'culprit' \(Stopping\) stops gradients") as caught:
        keras_fds.hypergradients(model, data(), data(1))
        keras_fds.hypergradients(model, data(), data(1))
    assert len([each for each in caught if "stops gradients" in str(each.message)]) == 1


@pytest.mark.sweep()
def test_right_layers_and_losses_are_not_warned_of():
    layers = keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)
    model = compiled(network(*layers, keras.layers.LayerNormalization()))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* stops gradients")
        keras_fds.hypergradients(model, data(), data(1))
