"""Under `mixed_bfloat16` and `mixed_float16` models learn; what is kept stays float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.differentiation.forward import Forward
from tests.differentiation import reference

HORIZON = 12
BATCH = 16


@pytest.fixture
def policy():
    def choose(name):
        keras.config.set_floatx("float64" if name == "float64" else "float32")
        keras.config.set_dtype_policy(name)

    yield choose
    choose("float32")


@keras.saving.register_keras_serializable("tests")
class Projection(keras.layers.Layer):
    """Its weight is cast by Keras, not by an operation of its own."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 8), name="kernel")

    def call(self, inputs):
        return tf.tanh(inputs @ self.kernel)


def make_model():
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(momentum=0.8),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            Projection(),
            keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(1e-3)),
        ]
    )
    model.compile(
        keras_fds.HyperOptimizer(
            keras_fds.optimizers.SGD(loss_scale_factor=1024.0),
            [
                keras_fds.Hyperparameter("learning_rate", 3, 0.05),
                keras_fds.Hyperparameter("momentum", 1, 0.5),
            ],
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        auto_scale_loss=False,
    )
    return model


def make_unroll():
    model = make_model()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if len(variable.shape) > 1:
            fan_in = np.prod(variable.shape[:-1])
            variable.assign(rng.normal(size=variable.shape) * np.sqrt(2 / fan_in))
    x, y = rng.normal(size=(HORIZON * BATCH + 60, 6, 6, 1)), rng.integers(0, 3, 252)
    x[:, 0, 0, 0] += y
    train = ArrayBatches(as_arrays(x, y, None), BATCH, np.arange(HORIZON * BATCH))
    validation = train.subset(np.arange(HORIZON * BATCH, len(x)), 60)
    unroll = Forward().bind(model, train.spec)
    unroll.reset(HORIZON)
    assert unroll.run(train.start(), 0, 0, HORIZON) == (HORIZON, True)
    return unroll, reference.measured(unroll, validation.start(), validation.num_batches)


@pytest.mark.sweep()
def test_hypergradients_are_those_of_float32_to_bfloat16s_precision(policy):
    policy("float64")
    _, (loss, exact) = make_unroll()
    for name, bound in (("float32", 1e-4), ("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)):
        policy(name)
        unroll, (rounded_loss, rounded) = make_unroll()
        assert rounded_loss == pytest.approx(loss, rel=bound)
        assert np.abs(rounded - exact).max() <= bound * np.abs(exact).max()
        kept = [
            unroll.step.model.weights,
            unroll.step.model.statistics,
            unroll.step.optimizer.slots,
        ]
        kept = [v for group in kept for v in group] + tf.nest.flatten(unroll.tangents)
        assert {v.dtype.name for v in kept} == {"float32"}
        assert rounded.dtype == "float64"


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_search_and_stock_training_run_in(policy, name):
    policy(f"mixed_{name}")
    unroll, _ = make_unroll()
    model = unroll.step.model.model
    assert model.layers[0].compute_dtype == name
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6, 6, 1)), rng.integers(0, 3, 60)
    history = keras_fds.fit(
        model, x, y, batch_size=8, outer_steps=2, validation_split=0.2, verbose=0
    )
    assert np.isfinite(history.history["val_loss"]).all()
    model.fit(x, y, verbose=0)


@pytest.mark.parametrize("differentiation", ["forward", "reverse"])
def test_a_loss_scale_keeps_what_float16_would_lose(policy, differentiation):
    """Gradients of 1e-9 are zero in float16; 2^20 times as many are not."""
    found = {}
    for scale in (None, 2.0**20):
        policy("mixed_float16")
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
        optimizer = keras_fds.HyperOptimizer(
            keras.optimizers.SGD(loss_scale_factor=scale),
            [keras_fds.Hyperparameter("learning_rate", initial=1.0)],
        )
        model.compile(
            optimizer, loss=lambda y, prediction: 1e-9 * prediction, auto_scale_loss=False
        )
        data = tf.data.Dataset.from_tensors((tf.ones([3, 4]), tf.zeros([3, 1]))).repeat(4)
        found[scale] = keras_fds.hypergradients(model, data, data, differentiation=differentiation)
    # Every step moves all four weights by -1e-9, and the loss goes by 1e-9 times their sum.
    assert found[None]["learning_rate"] == 0.0
    np.testing.assert_allclose(found[2.0**20]["learning_rate"], -4e-18, rtol=1e-2)


def test_a_loss_scale_that_keras_moves_is_refused(policy):
    policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras_fds.HyperOptimizer(keras.optimizers.SGD(), []), loss="mse")
    with pytest.raises(ValueError, match="auto_scale_loss=False.*loss_scale_factor=1024.0"):
        keras_fds.fit(model, np.zeros((8, 4)), np.zeros((8, 1)), validation_split=0.5)


@pytest.mark.sweep("mixed_bfloat16")
@pytest.mark.parametrize("name", ["float32", "mixed_bfloat16"])
def test_hypergradients_can_be_computed_in_float64_whatever_the_model(policy, name):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 6, 6, 1)).astype("float32"), rng.integers(0, 3, 60)
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)

    def model():
        model = make_model()
        rng = np.random.default_rng(1)
        for variable in model.trainable_variables:
            value = rng.normal(size=variable.shape).astype("float32")
            variable.assign(value.astype(str(variable.dtype)))
        return model

    policy("float64")
    wide = dataset.map(lambda x, y: (tf.cast(x, "float64"), y))
    expected = keras_fds.hypergradients(model(), wide.take(5), wide.skip(5))
    policy(name)
    narrow = model()
    before = narrow.get_weights()
    actual = keras_fds.hypergradients(narrow, dataset.take(5), dataset.skip(5), dtype="float64")
    for key, values in expected.items():
        np.testing.assert_allclose(actual[key], values, rtol=1e-10)
    for value, unchanged in zip(narrow.get_weights(), before):
        np.testing.assert_array_equal(value, unchanged)
    assert keras.config.floatx() == "float32"
    with pytest.raises(ValueError, match="dtype='float16'"):
        keras_fds.hypergradients(narrow, dataset.take(5), dataset.skip(5), dtype="float16")
