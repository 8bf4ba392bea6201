"""Products in place are those of TensorFlow's own forward mode."""

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.internals import tf_forward_mode, tf_graph

X, DX = np.array([0.5, -1.5, 2.0]), np.array([1.0, 0.3, -2.0])


def gradient_of_a_network(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(tf.tanh(tf.linalg.matvec(tf.ones((3, 3), x.dtype), x)) ** 3)
    return tape.gradient(y, x)


def product_inside(x):
    """A derivative that the function itself takes, in forward mode."""
    with tf.autodiff.ForwardAccumulator(x, tf.cos(x)) as inner:
        y = tf.sin(x) * x
    return inner.jvp(y) + y


@tf.function
def inner_function(x):
    return tf.exp(x) * tf.reduce_sum(x)


@tf.custom_gradient
def custom(x):
    return x**2, lambda upstream: 3.0 * x * upstream


def gather(x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(tf.gather(x, [1, 2, 1]) ** 3)
    return tf.convert_to_tensor(tape.gradient(y, x))


FUNCTIONS = {
    "same_input_twice": lambda x: x * x + tf.reduce_sum(tf.linalg.matmul(x[:, None], x[None])),
    "gather": gather,
    "two_outputs": lambda x: tf.stack(tf.unstack(x)[::-1]) * tf.math.top_k(x, 3).values,
    "gradient": gradient_of_a_network,
    "product_inside": product_inside,
    "inner_function": lambda x: inner_function(x) * x,
    "not_differentiable": lambda x: tf.where(tf.cast(tf.round(x), tf.int32) > 0, x, 2.0 * x),
}


def product(function, in_place):
    @tf.function(autograph=False)
    def compute(x, dx):
        accumulator = tf.autodiff.ForwardAccumulator(x, dx)
        if not in_place:
            with accumulator:
                y = function(x)
        else:
            with accumulator, tf_forward_mode.in_place(accumulator):
                y = function(x)
        return tf.convert_to_tensor(accumulator.jvp(y))

    functions = compute.get_concrete_function(X, DX).graph.as_graph_def().library.function
    calls = [f.signature.name for f in functions if "jvp" in f.signature.name]
    return compute(X, DX).numpy(), calls


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_tensorflows_own(name):
    function = FUNCTIONS[name]
    expected, calls = product(function, in_place=False)
    assert calls
    actual, calls = product(function, in_place=True)
    assert not calls or name in ("product_inside", "inner_function")
    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    np.testing.assert_array_equal(product(function, in_place=False)[0], expected)


def test_a_custom_gradient_is_taken_as_the_derivative():
    """TensorFlow's forward mode differentiates the function itself, its reverse mode does not."""
    with tf_graph.telling_of_custom_gradients(lambda: None):
        actual, _ = product(lambda x: custom(x) * x, in_place=True)
    np.testing.assert_allclose(actual, (3 * X * X + X**2) * DX, rtol=1e-14)


def test_in_place_products_are_exact_where_the_function_takes_products_itself():
    actual, _ = product(product_inside, in_place=True)
    # y = x sin x; y' cos x + y.
    derivative = (2 * np.cos(X) - X * np.sin(X)) * np.cos(X)
    derivative -= (np.sin(X) + X * np.cos(X)) * np.sin(X)
    derivative += np.sin(X) + X * np.cos(X)
    np.testing.assert_allclose(actual, derivative * DX, rtol=1e-13)
