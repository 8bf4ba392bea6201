"""What stands in for functions of TensorFlow takes their arguments and gives their values."""

import importlib
import inspect

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.internals import keras_layers, tf_second_derivatives

METHODS = ("bilinear", "nearest", "bicubic", "area", "lanczos3", "gaussian", "mitchellcubic")


@pytest.mark.parametrize(
    ("module", "ours"),
    tf_second_derivatives.REPLACEMENTS,
    ids=lambda each: getattr(each, "__name__", each),
)
def test_replaced_functions_have_tensorflows_arguments(module, ours):
    stock = getattr(getattr(tf, module), ours.__name__)
    expected = [name.removesuffix("_v2") for name in inspect.signature(stock).parameters]
    assert list(inspect.signature(ours).parameters) == expected


@pytest.mark.parametrize("module", ["nn", "image"])
def test_functions_are_replaced_however_their_module_was_imported(module):
    before = getattr(tf, module)
    again = importlib.import_module(f"tensorflow.{module}")  # A second object for the module.
    functions = [ours for name, ours in tf_second_derivatives.REPLACEMENTS if name == module]
    with keras_layers.twice_differentiable():
        for owner in (before, again, getattr(tf, module)):
            assert all(getattr(owner, each.__name__) is each for each in functions)
    for owner in (before, again, getattr(tf, module)):
        assert not any(getattr(owner, each.__name__) is each for each in functions)


@pytest.mark.parametrize("keepdims", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_moments_are_tensorflows(dtype, keepdims):
    x = tf.cast(tf.random.normal([4, 3, 2]), dtype)
    for ours, stock in zip(
        tf_second_derivatives.moments(x, [0, 1], keepdims=keepdims),
        tf.nn.moments(x, [0, 1], keepdims=keepdims),
    ):
        assert ours.dtype == stock.dtype
        np.testing.assert_allclose(tf.cast(ours, "float32"), tf.cast(stock, "float32"), rtol=1e-2)


@pytest.mark.parametrize("axis", [0, -1])
def test_cross_entropy_is_tensorflows(axis):
    labels, logits = tf.nn.softmax(tf.random.normal([4, 3])), tf.random.normal([4, 3])
    ours = tf_second_derivatives.softmax_cross_entropy_with_logits(labels, logits, axis)
    stock = tf.nn.softmax_cross_entropy_with_logits(labels, logits, axis)
    np.testing.assert_allclose(ours, stock, rtol=1e-5)


def test_softsign_is_tensorflows():
    x = tf.random.normal([9])
    np.testing.assert_allclose(tf_second_derivatives.softsign(x), tf.nn.softsign(x), rtol=1e-6)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_resizing_is_tensorflows(method, antialias):
    images = tf.random.normal([2, 5, 7, 3])
    for size in ([8, 4], [5, 14]):
        ours = tf_second_derivatives.resize(images, size, method, antialias=antialias)
        stock = tf.image.resize(images, size, method, antialias=antialias)
        assert ours.shape == stock.shape
        np.testing.assert_allclose(ours, stock, atol=1e-5)


def test_resizing_needs_no_known_shape():
    images = tf.random.normal([2, 5, 7, 3])
    resize = tf.function(tf_second_derivatives.resize, autograph=False).get_concrete_function(
        tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([2], "int32")
    )
    np.testing.assert_allclose(
        resize(images, tf.constant([3, 3])), tf.image.resize(images, [3, 3]), atol=1e-5
    )


def test_resizing_keeps_tensorflows_dtypes():
    for dtype in ("uint8", "bfloat16", "float32"):
        images = tf.cast(tf.random.uniform([1, 4, 4, 1], 0, 9), dtype)
        for method in ("bilinear", "nearest"):
            stock = tf.image.resize(images, [2, 3], method)
            assert tf_second_derivatives.resize(images, [2, 3], method).dtype == stock.dtype


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_of_volumes_is_tensorflows(kind, padding):
    volumes = tf.random.normal([2, 5, 4, 6, 3])
    name = f"{kind}_pool"
    arguments = volumes, [2, 3, 2], [2, 1, 2], padding
    np.testing.assert_allclose(
        getattr(tf_second_derivatives, name)(*arguments),
        getattr(tf.nn, name)(*arguments),
        atol=1e-6,
    )
    arguments = volumes, [2, 1, 3], kind.upper(), [1, 1, 2], padding
    np.testing.assert_allclose(
        tf_second_derivatives.pool(*arguments), tf.nn.pool(*arguments), atol=1e-6
    )
    images = volumes[0]
    arguments = images, 2, 2, padding
    np.testing.assert_array_equal(
        getattr(tf_second_derivatives, name)(*arguments), getattr(tf.nn, name)(*arguments)
    )
