"""The pure functions equal Keras's own stateful ones, and differentiate twice."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.functional.model import StatelessModel
from keras_fds.functional.optimizer import build_optimizer, with_hyperparameters
from keras_fds.functional.rebuild import draw_weights


def variables():
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape).astype("float32")) for shape in ((4, 3), (3,))]


def test_substituted_hyperparameters_replace_the_optimizers_own():
    gradients = [tf.ones((4, 3)), tf.ones((3,))]
    values = {"learning_rate": 0.3, "momentum": 0.7, "weight_decay": 0.1}
    expected, actual = variables(), variables()
    reference = keras.optimizers.SGD(**values)
    substituted = keras.optimizers.SGD(0.01)
    build_optimizer(substituted, list(values), actual)
    tensors = {name: tf.constant(value) for name, value in values.items()}
    for _ in range(3):
        reference.apply(gradients, expected)
        with_hyperparameters(substituted, tensors).apply(gradients, actual)
    np.testing.assert_allclose(actual[0].numpy(), expected[0].numpy(), rtol=1e-6)
    assert float(substituted.learning_rate) == pytest.approx(0.01)
    assert (substituted.momentum, substituted.weight_decay) == (0.0, None)


NORMALIZATIONS = {
    "batch": lambda: keras.layers.BatchNormalization(),
    "batch_of_images": lambda: keras.layers.BatchNormalization(axis=1),
    "layer": lambda: keras.layers.LayerNormalization(),
    "group": lambda: keras.layers.GroupNormalization(groups=2),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalisation_has_right_hessian_vector_products(name):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3, 4)), keras.layers.Dense(4), NORMALIZATIONS[name](), keras.layers.Dense(2)]
    )
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    batch = as_arrays(rng.normal(size=(8, 3, 4)), rng.normal(size=(8, 3, 2)), None)
    batch = (batch[0], tf.tanh(batch[1]), None)
    stateless = StatelessModel(model, ArrayBatches(batch, 8).spec)
    weights = [tf.convert_to_tensor(v) for v in stateless.weights]
    direction = [tf.constant(rng.normal(size=v.shape)) for v in weights]

    @tf.function
    def gradient(weights):
        return stateless.gradients(weights, stateless.statistics, [], {}, batch)[0][0]

    @tf.function
    def product(weights):
        with tf.autodiff.ForwardAccumulator(weights, direction) as accumulator:
            gradients = stateless.gradients(weights, stateless.statistics, [], {}, batch)[0][0]
        return accumulator.jvp(gradients)

    def moved(step):
        return gradient([w + step * d for w, d in zip(weights, direction)])

    differences = [(a - b) / 2e-5 for a, b in zip(moved(1e-5), moved(-1e-5))]
    scale = max(np.abs(d).max() for d in differences)
    for actual, expected in zip(product(weights), differences):
        np.testing.assert_allclose(actual, expected, atol=1e-7 * scale)


def model_with_frozen_and_adapted_layers():
    normalization = keras.layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(3.0, 2.0, size=(50, 4)))
    return keras.Sequential(
        [
            keras.Input((4,)),
            normalization,
            keras.layers.Dense(5, trainable=False, name="frozen"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )


def test_state_is_what_training_changes():
    model = model_with_frozen_and_adapted_layers()
    model.compile(loss="mse")
    spec = (tf.TensorSpec([None, 4]), tf.TensorSpec([None, 2]), None)
    stateless = StatelessModel(model, spec)
    assert [w.shape.as_list() for w in stateless.weights] == [[5], [5], [5, 2], [2]]
    assert [s.shape.as_list() for s in stateless.statistics] == [[5], [5]]
    assert len(stateless.counters) == 1


def test_reinitialising_keeps_frozen_weights_and_adapted_statistics():
    model = model_with_frozen_and_adapted_layers()
    model.compile(loss="mse")
    spec = (tf.TensorSpec([None, 4]), tf.TensorSpec([None, 2]), None)
    stateless = StatelessModel(model, spec)
    model.layers[2].moving_mean.assign(np.ones(5))
    before = {v.path: v.numpy() for v in model.variables}
    values = draw_weights(model, spec[0], stateless.trained)
    for variable, value in zip(stateless.trained, values, strict=True):
        variable.assign(value)
    after = {v.path: v.numpy() for v in model.variables}
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    names = {path.split("/", 1)[-1] for path in changed}
    assert any("kernel" in name for name in names)
    assert any("moving_mean" in name for name in names)
    assert not any("frozen" in path or "normalization/mean" in path for path in changed)
    np.testing.assert_array_equal(model.layers[2].moving_mean.numpy(), np.zeros(5))
