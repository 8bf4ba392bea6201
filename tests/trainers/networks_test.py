"""Tests of trainers/networks.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainers import data, networks

NAMES = ["digits_cnn", "lenet", "lenet_valid", "mlp", "wrn"]


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("input_shape", [(28, 28, 1), (32, 32, 3)])
def test_returns_logits(name, input_shape):
    model = networks.build(name, input_shape, 7)
    logits = model(10 * np.ones((2, *input_shape), np.float32))
    assert logits.shape == (2, 7)
    assert not np.allclose(np.sum(logits, axis=-1), 1)
    assert np.min(logits) < 0


@pytest.mark.parametrize("name", NAMES)
def test_starts_from_glorot_normal_kernels_and_zero_biases(name):
    model = networks.build(name, (28, 28, 1), 10)
    for layer in layers_of(model, (keras.layers.Conv2D, keras.layers.Dense)):
        kernel = keras.ops.convert_to_numpy(layer.kernel)
        window = np.prod(kernel.shape[:-2])
        expected = np.sqrt(2 / (window * (kernel.shape[-2] + kernel.shape[-1])))
        assert kernel.std() == pytest.approx(expected, rel=4 / np.sqrt(kernel.size))
        assert not layer.use_bias or not np.any(layer.bias)


@pytest.mark.parametrize("name", NAMES)
def test_clones_start_from_other_weights(name):
    model = networks.build(name, (28, 28, 1), 10)
    clone = keras.models.clone_model(model)
    for weight, other in zip(model.weights, clone.weights, strict=True):
        assert weight.shape == other.shape
        assert "kernel" not in weight.path or not np.allclose(weight, other)


@pytest.mark.parametrize("name", NAMES)
def test_seed_decides_the_weights(name):
    weights = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        weights.append(networks.build(name, (28, 28, 1), 10).get_weights())
    for weight, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_lenet_is_lenet_5():
    model = networks.build("lenet", (28, 28, 1), 10)
    kernels = [weight.shape for weight in model.weights if weight.name == "kernel"]
    assert kernels == [(5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)]
    assert model.count_params() == 61706


def test_mlp_widths():
    model = networks.mlp((4, 3), 5, widths=(7,))
    assert [weight.shape for weight in model.weights] == [(12, 7), (7,), (7, 5), (5,)]


def test_digits_cnn_learns_digits(digits_dir):
    keras.utils.set_random_seed(0)
    train = data.load_arrays("digits", "train", digits_dir)
    test = data.load_arrays("digits", "test", digits_dir)
    model = networks.build("digits_cnn", train.input_shape, train.num_classes)
    learning_rate = keras.optimizers.schedules.CosineDecay(0.1, 8 * 12)
    model.compile(
        optimizer=keras.optimizers.SGD(learning_rate, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train.x, train.y, batch_size=128, epochs=8, verbose=0)
    assert model.evaluate(test.x, test.y, verbose=0)[1] >= 0.97


def reference_wide_resnet(model, x):
    """The output of a WRN-10, written out with TensorFlow's own operations."""
    convolutions = layers_of(model, keras.layers.Conv2D)
    wide = iter([layer.kernel.value for layer in convolutions if layer.kernel_size == (3, 3)])
    narrow = iter([layer.kernel.value for layer in convolutions if layer.kernel_size == (1, 1)])
    norms = iter(layers_of(model, keras.layers.BatchNormalization))
    by_one = [[0, 0], [1, 1], [1, 1], [0, 0]]

    def activation(x):
        norm = next(norms)
        deviation = tf.sqrt(norm.moving_variance.value + 1e-5)
        normalised = (x - norm.moving_mean.value) / deviation
        return tf.nn.relu(normalised * norm.gamma.value + norm.beta.value)

    x = tf.nn.conv2d(x, next(wide), 1, by_one)
    for stride in (1, 2, 2):
        activated = activation(x)
        hidden = tf.nn.conv2d(activated, next(wide), stride, by_one)
        shortcut = x
        if x.shape[-1] != hidden.shape[-1]:
            shortcut = tf.nn.conv2d(activated, next(narrow), stride, "VALID")
        hidden = activation(hidden)
        x = tf.nn.conv2d(hidden, next(wide), 1, by_one) + shortcut
    pooled = tf.reduce_mean(activation(x), (1, 2))
    return pooled @ model.layers[-1].kernel.value + model.layers[-1].bias.value


@pytest.mark.parametrize("width", [1, 2])
def test_wide_resnet_matches_its_description(width):
    model = networks.wide_resnet((16, 16, 3), 10, depth=10, width=width)
    random = np.random.default_rng(0)
    for weight in model.weights:  # Moving statistics and scales too, away from 0 and 1.
        weight.assign(weight + random.uniform(0, 0.3, weight.shape))
    x = random.normal(size=(4, 16, 16, 3)).astype(np.float32)
    expected = reference_wide_resnet(model, x)
    np.testing.assert_allclose(model(x, training=False), expected, rtol=1e-4, atol=1e-4)


def test_wide_resnet_sizes():
    model = networks.build("wrn", (32, 32, 3), 10)
    assert model.name == "wrn_16_1"
    assert model.count_params() - sum(np.size(w) for w in model.non_trainable_weights) == 175066
    assert not any(layer.use_bias for layer in layers_of(model, keras.layers.Conv2D))
    norms = layers_of(model, keras.layers.BatchNormalization)
    assert {(norm.momentum, norm.epsilon) for norm in norms} == {(0.9, 1e-5)}
    wider = networks.wide_resnet((32, 32, 3), 10, depth=10, width=2)
    assert wider.layers[-1].kernel.shape == (128, 10)


def test_unknown_name():
    with pytest.raises(ValueError, match="lenet, lenet_valid, mlp, wrn.* Received: name=resnet"):
        networks.build("resnet", (28, 28, 1), 10)
    with pytest.raises(ValueError, match="Unknown network.*Received: name=wrn_16"):
        networks.build("wrn_16", (28, 28, 1), 10)


def test_images_too_small_for_lenet():
    with pytest.raises(ValueError, match=r"12x12.*input_shape=\(8, 8, 1\)"):
        networks.build("lenet", (8, 8, 1), 10)
    networks.build("lenet_valid", (16, 16, 1), 10)
    with pytest.raises(ValueError, match=r"16x16.*input_shape=\(15, 16, 1\)"):
        networks.build("lenet_valid", (15, 16, 1), 10)


@pytest.mark.parametrize("depth", [4, 12])
def test_impossible_depth(depth):
    with pytest.raises(ValueError, match=f"Received: depth={depth}"):
        networks.wide_resnet((32, 32, 3), 10, depth=depth)


def test_impossible_width():
    with pytest.raises(ValueError, match="Received: width=0"):
        networks.build("wrn_16_0", (32, 32, 3), 10)


@pytest.mark.parametrize(
    "name, input_shape, count",
    [
        ("lenet_valid", (28, 28, 1), 44_426),
        ("lenet_valid", (32, 32, 3), 62_006),
        ("wrn_10_1", (32, 32, 3), 77_850),
        ("wrn_16_1", (32, 32, 3), 175_066),
        ("wrn_40_2", (32, 32, 3), 2_243_546),
    ],
)
def test_the_papers_networks_have_its_numbers_of_parameters(name, input_shape, count):
    model = networks.build(name, input_shape, 10)
    assert sum(weight.value.shape.num_elements() for weight in model.trainable_weights) == count
    if name.startswith("wrn"):
        assert model.name == name


INITIALIZERS = {
    "glorot_normal": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "glorot_uniform": lambda fan_in, fan_out: np.sqrt(2 / (fan_in + fan_out)),
    "he_normal": lambda fan_in, fan_out: np.sqrt(2 / fan_in),
    "he_fan_out": lambda fan_in, fan_out: np.sqrt(2 / fan_out),
    "orthogonal": lambda fan_in, fan_out: np.sqrt(1 / max(fan_in, fan_out)),
    "random_normal": lambda fan_in, fan_out: 0.05,
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializer_is_of_every_kernel(name):
    initializer = name
    if name == "he_fan_out":
        he = keras.initializers.VarianceScaling(2.0, "fan_out")
        initializer = keras.initializers.serialize(he)
    model = networks.build("mlp", (8, 8, 1), 64, initializer=initializer)
    first, second, third = (layer.kernel.numpy() for layer in layers_of(model, keras.layers.Dense))
    for kernel in (first, second, third):
        expected = INITIALIZERS[name](*kernel.shape)
        assert kernel.std() == pytest.approx(expected, rel=0.05)
    if name == "orthogonal":
        np.testing.assert_allclose(third.T @ third, np.eye(64), atol=1e-5)
    # Kernels of one shape differ.
    wide = networks.mlp((64,), 64, widths=(64,), initializer=initializer)
    one, other = (layer.kernel.numpy() for layer in layers_of(wide, keras.layers.Dense))
    assert not np.allclose(one, other)


@pytest.mark.parametrize("initializer", ["gloriot", {"class_name": "Nope", "config": {}}, 3])
def test_unknown_initializer(initializer):
    with pytest.raises(ValueError, match="`initializer` must be a name such as 'glorot_normal'"):
        networks.build("mlp", (8, 8, 1), 10, initializer=initializer)


@pytest.mark.parametrize("name", NAMES)
def test_images_pass_the_augmentation_first(name):
    double = keras.layers.Rescaling(2.0)
    model = networks.build(name, (28, 28, 1), 10, augmentation=double)
    assert model.layers[1] is double
    plain = networks.build(name, (28, 28, 1), 10)
    plain.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    np.testing.assert_allclose(model(x), plain(2 * x), rtol=1e-4, atol=1e-5)
