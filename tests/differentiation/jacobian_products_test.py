"""Jacobian-vector products along many tangents."""

import random

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.differentiation.jacobian_products import jacobian_vector_products, with_fixed_rng


def function(x, y):
    """Outputs with a known Jacobian, and something to carry along."""
    return {"product": x["a"] * y, "sum": tf.reduce_sum(tf.sin(x["a"]))}, tf.constant(7)


PRIMALS = ({"a": tf.constant([0.5, 2.0], tf.float64)}, tf.constant([3.0, -1.0], tf.float64))


def tangents(count):
    rng = np.random.default_rng(0)
    return (
        {"a": tf.constant(rng.normal(size=(count, 2)))},
        tf.constant(rng.normal(size=(count, 2))),
    )


def expected(tangents):
    a, y = PRIMALS[0]["a"].numpy(), PRIMALS[1].numpy()
    da, dy = tangents[0]["a"].numpy(), tangents[1].numpy()
    return {"product": da * y + a * dy, "sum": da @ np.cos(a)}


def test_products_equal_the_known_jacobian():
    outputs, extra, products = jacobian_vector_products(function, PRIMALS, tangents(4))
    np.testing.assert_allclose(outputs["product"], [1.5, -2.0])
    assert int(extra) == 7
    for name, value in expected(tangents(4)).items():
        np.testing.assert_allclose(products[name], value, rtol=1e-14)


def test_an_argument_without_tangents_is_constant():
    _, of_y = tangents(4)
    _, _, products = jacobian_vector_products(function, PRIMALS, (None, of_y))
    zeros = {"a": tf.zeros([4, 2], tf.float64)}
    for name, value in expected((zeros, of_y)).items():
        np.testing.assert_allclose(products[name], value, rtol=1e-14)
    outputs, extra, products = jacobian_vector_products(function, PRIMALS, (None, None))
    np.testing.assert_allclose(outputs["product"], [1.5, -2.0])
    assert int(extra) == 7 and products is None


def test_one_trace_serves_every_number_of_tangents():
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)] * 2)
    def products(da, dy):
        traces.append(1)
        return jacobian_vector_products(function, PRIMALS, ({"a": da}, dy))[2]

    for count in (1, 2, 5):
        along = tangents(count)
        actual = products(along[0]["a"], along[1])
        np.testing.assert_allclose(actual["product"], expected(along)["product"], rtol=1e-14)
    assert len(traces) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_groups_of_tangents_have_the_same_products(size):
    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64)] * 2)
    def products(da, dy):
        return jacobian_vector_products(function, PRIMALS, ({"a": da}, dy), size)[2]

    for count in (1, 5):
        along = tangents(count)
        actual = products(along[0]["a"], along[1])
        for name, value in expected(along).items():
            np.testing.assert_allclose(actual[name], value, rtol=1e-14)


def test_outputs_that_do_not_depend_on_the_primals_have_zero_products():
    constant = tf.constant([1.0, 2.0], tf.float64)
    _, _, products = jacobian_vector_products(
        lambda x: ([x, constant], None),
        (tf.constant(1.0, tf.float64),),
        (tf.constant([2.0, 3.0], tf.float64),),
    )
    np.testing.assert_array_equal(products[1], np.zeros((2, 2)))


def test_one_tensor_given_twice_counts_as_two_primals():
    x = tf.constant(3.0, tf.float64)
    along = (tf.constant([1.0], tf.float64), tf.constant([0.0], tf.float64))
    _, _, products = jacobian_vector_products(lambda a, b: (a * b * b, None), (x, x), along)
    assert float(products[0]) == pytest.approx(9.0)


@pytest.mark.parametrize("wrong", ["fewer", "more"])
def test_tangents_of_another_structure_are_refused(wrong):
    along = tangents(2)
    along = (along[0],) if wrong == "fewer" else (*along, along[1])
    with pytest.raises((ValueError, TypeError)):
        jacobian_vector_products(function, PRIMALS, along)


def power(x, n):
    """xⁿ by a loop over a tensor's value."""
    return tf.while_loop(lambda i, _: i < n, lambda i, y: (i + 1, y * x), (0, tf.ones_like(x)))[1]


def chosen(x, n):
    """xⁿ from one branch of a condition."""
    return tf.cond(n > 2, lambda: x**3, lambda: x)


@pytest.mark.parametrize("function", [power, chosen])
def test_gradients_through_loops_and_conditions_have_right_products(function):
    @tf.function(autograph=False)
    def products(x, along, n):
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(tf.sin(function(x, n)))
            return [tape.gradient(y, x), tf.constant(1.0, tf.float64)], None

        return jacobian_vector_products(gradient, (x,), (along,))[2]

    x = np.array([0.5, 1.2])
    along = np.random.default_rng(0).normal(size=(3, 2))
    actual = products(tf.constant(x), tf.constant(along), tf.constant(3))
    hessian = 6 * x * np.cos(x**3) - 9 * x**4 * np.sin(x**3)
    np.testing.assert_allclose(actual[0], along * hessian, rtol=1e-12)
    np.testing.assert_array_equal(actual[1], np.zeros(3))


def test_random_numbers_of_python_are_the_same_in_outputs_and_products():
    def scaled(x):
        return x * (random.random() + np.random.random()), None

    x, along = tf.constant(1.0, tf.float64), tf.constant([1.0, 1.0], tf.float64)
    output, _, products = jacobian_vector_products(scaled, (x,), (along,))
    np.testing.assert_array_equal(products, [output, output])
    random.random()  # Another state, other numbers.
    assert float(jacobian_vector_products(scaled, (x,), (along,))[0]) != float(output)


def test_draws_in_python_are_alike_in_every_call_and_leave_those_of_others_alone():
    def draw():
        return random.random(), np.random.random()

    alike = with_fixed_rng(draw)
    random.seed(1)
    np.random.seed(1)
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    assert alike() == alike()
    assert draw() == expected
