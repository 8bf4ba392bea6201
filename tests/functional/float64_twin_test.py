"""The float64 twin is the same function as the model, or the layer that differs is named."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds

L = keras.layers
RNG = np.random.default_rng(0)
X = (5 + 3 * RNG.normal(size=(40, 4))).astype("float32")
Y = X[:, :1] * 0.1
WORDS = np.array(["red", "green", "blue", "red"] * 10)[:, None]
NUMBERS = RNG.choice([7, 11, 42], (40, 1))
TEXTS = np.array(["a red house", "the green house", "blue", "a house"] * 10)[:, None]


def adapted(layer, data):
    layer.adapt(data)
    return layer


def nested():
    inner = keras.Sequential([keras.Input((4,)), adapted(L.Normalization(), X), L.Dense(3)])
    return [keras.Input((4,)), inner, L.Dense(1)]


CASES = {
    "Normalization": (X, lambda: [keras.Input((4,)), adapted(L.Normalization(), X), L.Dense(1)]),
    "Normalization, inverted": (
        X,
        lambda: [keras.Input((4,)), adapted(L.Normalization(invert=True), X), L.Dense(1)],
    ),
    "nested": (X, nested),
    "Discretization": (
        X[:, :1],
        lambda: [
            keras.Input((1,)),
            adapted(L.Discretization(num_bins=4, output_mode="one_hot"), X[:, :1]),
            L.Dense(1),
        ],
    ),
    "StringLookup": (
        WORDS,
        lambda: [
            keras.Input((1,), dtype="string"),
            adapted(L.StringLookup(output_mode="one_hot"), WORDS),
            L.Dense(1),
        ],
    ),
    "IntegerLookup": (
        NUMBERS,
        lambda: [
            keras.Input((1,), dtype="int64"),
            adapted(L.IntegerLookup(output_mode="one_hot"), NUMBERS),
            L.Dense(1),
        ],
    ),
    "TextVectorization": (
        TEXTS,
        lambda: [
            keras.Input((1,), dtype="string"),
            adapted(L.TextVectorization(output_sequence_length=3), TEXTS),
            L.Embedding(9, 3),
            L.Flatten(),
            L.Dense(1),
        ],
    ),
    "Hashing": (
        WORDS,
        lambda: [
            keras.Input((1,), dtype="string"),
            L.Hashing(5, output_mode="one_hot"),
            L.Dense(1),
        ],
    ),
    "random": (X, lambda: [keras.Input((4,)), L.GaussianNoise(0.1), L.Dense(3), L.Dense(1)]),
}


def compiled(layers):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(layers)
    learned = [keras_fds.Hyperparameter("learning_rate", 1, 0.02)]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), learned), "mse")
    return model


def data_of(x):
    data = tf.data.Dataset.from_tensor_slices((x, Y)).batch(8)
    return data.take(3), data.skip(3)


@pytest.mark.sweep("Normalization", "nested")
@pytest.mark.parametrize("name", CASES)
def test_hypergradients_in_float64_are_of_the_model(name):
    x, make = CASES[name]
    model, data = compiled(make()), data_of(x)
    check = keras_fds.check_hypergradients(model, *data, verbose=False)
    assert check.passed, check
    if name == "random":  # Noise in float64 is other noise.
        return
    own = keras_fds.hypergradients(model, *data)
    np.testing.assert_allclose(
        check.forward["learning_rate"], own["learning_rate"], rtol=1e-3, atol=1e-5
    )


@keras.saving.register_keras_serializable("twin_test")
class Remembering(L.Layer):
    """Keeps a number that neither its config nor its variables tell."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_a_layer_that_its_config_does_not_describe_is_named():
    layer = Remembering(name="odd")
    layer.factor = 3.0
    model = compiled([keras.Input((4,)), L.Dense(2), layer, L.Dense(1)])
    message = r"layer 'odd' \(Remembering\) computes something else in its float64 twin"
    for call in (
        lambda data: keras_fds.hypergradients(model, *data, dtype="float64"),
        lambda data: keras_fds.check_hypergradients(model, *data, verbose=False),
    ):
        with pytest.raises(ValueError, match=message):
            call(data_of(X))


def test_it_is_checked_against_a_model_that_is_made_anew_too():
    model = compiled([keras.Input((4,)), L.Rescaling(0.5), L.Dense(1)])
    with pytest.raises(ValueError, match=r"'rescaling.*' \(Rescaling\) computes something else"):
        keras_fds.check_hypergradients(
            model,
            *data_of(X),
            make_model=lambda: keras.Sequential([keras.Input((4,)), L.Rescaling(0.25), L.Dense(1)]),
        )


class OneHot(L.Layer):
    """Uses Keras's default type, which is float64 while the twin computes."""

    def call(self, x):
        return x + keras.ops.one_hot(keras.ops.argmax(x, -1), 3)


def test_layers_that_use_the_default_type_are_the_same_in_both():
    with keras.saving.custom_object_scope({"OneHot": OneHot}):
        model = compiled([keras.Input((4,)), L.Dense(3), OneHot(), L.Dense(1)])
        check = keras_fds.check_hypergradients(model, *data_of(X), verbose=False)
    own = keras_fds.hypergradients(model, *data_of(X))["learning_rate"]
    np.testing.assert_allclose(check.forward["learning_rate"], own, rtol=1e-3)


class OwnCompile(keras.Model):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.dense = L.Dense(1)

    def call(self, x):
        return self.dense(x)

    def compile(self, optimizer, alpha=0.1):
        super().compile(optimizer=optimizer)
        self.alpha = alpha

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.alpha * keras.ops.mean((y - y_pred) ** 2)


def test_what_an_own_compile_keeps_is_kept_or_refused():
    def make():
        model = OwnCompile()
        learned = [keras_fds.Hyperparameter("learning_rate", 1, 0.001)]
        model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), learned), alpha=1.0)
        return model

    model = make()
    own = keras_fds.hypergradients(model, *data_of(X))["learning_rate"]
    check = keras_fds.check_hypergradients(model, *data_of(X), make_model=make, verbose=False)
    np.testing.assert_allclose(check.forward["learning_rate"], own, rtol=1e-3)
    with pytest.raises(ValueError, match="OwnCompile overrides `compile`"):
        keras_fds.hypergradients(model, *data_of(X), dtype="float64")


def test_a_random_image_layer_is_checked():
    images = RNG.random((40, 8, 8, 1)).astype("float32")
    model = compiled([keras.Input((8, 8, 1)), L.RandomRotation(0.1), L.Flatten(), L.Dense(1)])
    check = keras_fds.check_hypergradients(model, *data_of(images), verbose=False)
    assert check.passed, check


def test_what_is_masked_may_differ():
    tokens = RNG.integers(1, 6, (40, 5))
    tokens[:, 3:] = 0
    inputs = keras.Input((5,), dtype="int32")
    x = L.Embedding(6, 4, mask_zero=True)(inputs)
    outputs = L.Dense(1)(L.MultiHeadAttention(2, 2)(x, x))
    model = keras.Model(inputs, outputs)
    learned = [keras_fds.Hyperparameter("learning_rate", 1, 0.02)]
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), learned), "mse")
    targets = RNG.normal(size=(40, 5, 1)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((tokens, targets)).batch(8)
    check = keras_fds.check_hypergradients(model, batches.take(3), batches.skip(3), verbose=False)
    assert check.passed, check
