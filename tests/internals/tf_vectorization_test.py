"""The fused rules of `tf.vectorized_map` equal a Python loop over the tangents."""

import functools
import logging
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.internals import tf_vectorization


@pytest.fixture(autouse=True)
def _no_warnings():
    """Installs the rules, and fails a test that logs that an operation falls back to a loop."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    tf.get_logger().addHandler(handler)
    with tf_vectorization.installed():
        yield
    tf.get_logger().removeHandler(handler)
    assert [message for message in messages if "a while_loop" in message] == []


def normal(*shape, seed=0, dtype=np.float64):
    return tf.constant(np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype))


def integers(*shape, seed=0, dtype=np.float64):
    """Small integers: pooling windows of them tie, and sums of them are exact."""
    return tf.constant(np.random.default_rng([seed, *shape]).integers(-2, 3, shape).astype(dtype))


def operation_types(function):
    definition = function.graph.as_graph_def()
    nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
    return {node.op for node in nodes}


def assert_equals_loop(function, *stacked, fused=True, tolerance=1e-12):
    """`tf.vectorized_map` equals a loop, for a K known and unknown when the function is traced."""

    def vectorized(*tensors):
        return tf.vectorized_map(lambda slices: function(*slices), tensors)

    specifications = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in stacked]
    dynamic = tf.function(vectorized, input_signature=specifications, autograph=False)
    static = tf.function(vectorized, autograph=False)
    operations = operation_types(dynamic.get_concrete_function())
    assert not fused or operations.isdisjoint({"While", "StatelessWhile"})
    slice_function = tf.function(function, autograph=False)
    slices = [slice_function(*(x[k] for x in stacked)) for k in range(stacked[0].shape[0])]
    for count, vectorized_function in [(len(slices), static), (len(slices), dynamic), (1, dynamic)]:
        expected = tf.nest.map_structure(lambda *results: np.stack(results), *slices[:count])
        actual = vectorized_function(*(x[:count] for x in stacked))
        tf.nest.map_structure(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max())
            ),
            actual,
            expected,
        )
    return operations


# Convolutions.

GEOMETRIES = {
    "same": dict(strides=[1, 1, 1, 1], padding="SAME"),
    "valid": dict(strides=[1, 1, 1, 1], padding="VALID"),
    "same-strides": dict(strides=[1, 2, 3, 1], padding="SAME"),
    "valid-strides": dict(strides=[1, 2, 2, 1], padding="VALID"),
    "explicit": dict(
        strides=[1, 2, 1, 1], padding="EXPLICIT", explicit_paddings=[0, 0, 1, 2, 0, 1, 0, 0]
    ),
    "dilations": dict(strides=[1, 1, 1, 1], padding="SAME", dilations=[1, 2, 2, 1]),
}


@pytest.fixture(params=GEOMETRIES.values(), ids=GEOMETRIES)
def geometry(request):
    return request.param


def convolution_shapes(geometry, dtype):
    image, kernel = normal(2, 7, 8, 3, dtype=dtype), normal(3, 2, 3, 5, dtype=dtype)
    gradient = tf.raw_ops.Conv2D(input=image, filter=kernel, **geometry)
    return image, kernel, normal(*gradient.shape, seed=1, dtype=dtype)


def backward_precision(geometry):
    """The CPU kernels of the gradients know dilations in single precision only."""
    return (np.float32, 1e-5) if "dilations" in geometry else (np.float64, 1e-12)


def test_convolution(geometry):
    image, kernel, _ = convolution_shapes(geometry, np.float64)
    images, kernels = normal(3, *image.shape), normal(3, *kernel.shape)

    def convolve(image, kernel):
        return tf.raw_ops.Conv2D(input=image, filter=kernel, **geometry)

    assert_equals_loop(lambda x, w: (convolve(x, kernel), convolve(image, w)), images, kernels)
    assert_equals_loop(convolve, images, kernels, fused=False)


def test_convolution_gradients(geometry):
    dtype, tolerance = backward_precision(geometry)
    image, kernel, gradient = convolution_shapes(geometry, dtype)
    images, kernels, gradients = (
        normal(3, *x.shape, seed=2, dtype=dtype) for x in (image, kernel, gradient)
    )

    def to_filter(image, gradient):
        return tf.raw_ops.Conv2DBackpropFilter(
            input=image, filter_sizes=kernel.shape, out_backprop=gradient, **geometry
        )

    def to_image(kernel, gradient):
        return tf.raw_ops.Conv2DBackpropInput(
            input_sizes=image.shape, filter=kernel, out_backprop=gradient, **geometry
        )

    def one_stacked(x, w, y):
        return (
            (to_filter(x, gradient), to_filter(image, y)),
            (to_image(w, gradient), to_image(kernel, y)),
        )

    def both_stacked(x, w, y):
        return to_filter(x, y), to_image(w, y)

    stacked = images, kernels, gradients
    assert_equals_loop(one_stacked, *stacked, tolerance=tolerance)
    assert_equals_loop(both_stacked, *stacked, fused=False, tolerance=tolerance)


def test_convolution_with_channel_groups_is_left_to_the_stock_rule():
    image, kernels = normal(2, 6, 6, 4, dtype=np.float32), normal(3, 3, 3, 2, 6, dtype=np.float32)

    def convolve(kernel):
        return tf.nn.conv2d(image, kernel, 1, "SAME")

    assert_equals_loop(convolve, kernels, fused=False, tolerance=1e-5)


def test_channels_first_convolution_is_left_to_a_loop_without_a_warning():
    image, gradient = normal(2, 3, 6, 6), normal(2, 5, 6, 6)

    @tf.function(autograph=False)
    def vectorized(images):
        return tf.vectorized_map(
            lambda image: tf.raw_ops.Conv2DBackpropFilter(
                input=image,
                filter_sizes=[3, 3, 3, 5],
                out_backprop=gradient,
                strides=[1, 1, 1, 1],
                padding="SAME",
                data_format="NCHW",
            ),
            images,
        )

    # Traced only: the CPU has no kernel for it.
    operations = operation_types(vectorized.get_concrete_function(tf.stack([image, image])))
    assert operations & {"While", "StatelessWhile"}


# Pooling.

POOLS = {
    "2x2": dict(ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID"),
    "2x2-same": dict(ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME"),
    "overlap": dict(ksize=[1, 3, 3, 1], strides=[1, 2, 2, 1], padding="SAME"),
    "overlap-valid": dict(ksize=[1, 3, 2, 1], strides=[1, 1, 1, 1], padding="VALID"),
    "gaps": dict(ksize=[1, 2, 1, 1], strides=[1, 3, 2, 1], padding="SAME"),
}


@pytest.mark.parametrize("windows", POOLS.values(), ids=POOLS)
def test_pooling_gradients_resolve_ties_like_the_kernels(windows):
    image = integers(3, 7, 9, 4)
    pooled_shape = tf.raw_ops.MaxPool(input=image, **windows).shape

    def transfer(to_image, from_image):
        results = []
        for x in (image, tf.nn.relu(image)):
            for dtype in (tf.float32, tf.float64):
                x = tf.cast(x, dtype)
                primal = dict(orig_output=tf.raw_ops.MaxPool(input=x, **windows), **windows)
                for kernel, grad in [
                    (tf.raw_ops.MaxPoolGrad, to_image),
                    (tf.raw_ops.MaxPoolGradGrad, from_image),
                ]:
                    results.append(kernel(orig_input=x, grad=tf.cast(grad, dtype), **primal))
        return results

    stacked = integers(3, *pooled_shape, seed=1), integers(3, *image.shape, seed=2)
    operations = assert_equals_loop(transfer, *stacked, tolerance=0)
    assert ("MaxPoolWithArgmax" in operations) == (not tf.config.list_physical_devices("GPU"))


def test_pooling_of_stacked_images_is_left_to_the_stock_rule():
    images, gradients = integers(3, 2, 6, 6, 2), integers(3, 2, 3, 3, 2, seed=1)

    def backward(image, gradient):
        windows = POOLS["2x2"]
        pooled = tf.raw_ops.MaxPool(input=image, **windows)
        return tf.raw_ops.MaxPoolGrad(
            orig_input=image, orig_output=pooled, grad=gradient, **windows
        )

    assert_equals_loop(backward, images, gradients)


def test_pooling_gradients_stay_differentiable():
    image, stacked = integers(2, 6, 6, 2), normal(3, 2, 3, 3, 2)
    pooled = tf.nn.max_pool2d(image, 2, 2, "VALID")
    weights = normal(3, *image.shape)

    def backward(gradient):
        return tf.raw_ops.MaxPoolGrad(
            orig_input=image, orig_output=pooled, grad=gradient, **POOLS["2x2"]
        )

    with tf.GradientTape() as tape:
        tape.watch(stacked)
        total = tf.reduce_sum(weights * tf.vectorized_map(backward, stacked))
    expected = [
        tf.raw_ops.MaxPoolGradGrad(
            orig_input=image, orig_output=pooled, grad=weight, **POOLS["2x2"]
        )
        for weight in weights
    ]
    np.testing.assert_array_equal(tape.gradient(total, stacked), np.stack(expected))


# Element-wise gradients, matrix products and sums.


def test_activation_gradients():
    one, other = normal(4, 5), normal(4, 5, seed=1)

    def gradients(x):
        results = []
        for name in ("Elu", "LeakyRelu", "Relu", "Relu6", "Selu", "Softplus", "Softsign"):
            key = "outputs" if name in ("Elu", "Selu") else "features"
            operation = getattr(tf.raw_ops, name + "Grad")
            for dy, features in [(x, other), (one, x), (x + 1.0, x)]:
                results.append(operation(gradients=dy, **{key: features}))
        return results

    assert_equals_loop(gradients, normal(3, 4, 5))


def test_function_gradients():
    one, other = normal(4, 5), tf.abs(normal(4, 5, seed=1)) + 0.1

    def gradients(x):
        results = []
        for name in ("Reciprocal", "Rsqrt", "Sigmoid", "Sqrt", "Tanh"):
            operation = getattr(tf.raw_ops, name + "Grad")
            for y, dy in [(other, x), (tf.abs(x) + 0.1, one), (tf.abs(x) + 0.1, x)]:
                results.append(operation(y=y, dy=dy))
        return results

    assert_equals_loop(gradients, normal(3, 4, 5))


def test_matrix_product():
    left, right = normal(4, 4), normal(4, 4, seed=1)

    def products(x, y):
        pairs = [(x, right), (left, y), (x, y)]
        return [
            tf.matmul(*pair, transpose_a=transpose_a, transpose_b=transpose_b)
            for pair in pairs
            for transpose_a in (False, True)
            for transpose_b in (False, True)
        ]

    assert_equals_loop(products, normal(3, 4, 4, seed=2), normal(3, 4, 4, seed=3))
    assert_equals_loop(lambda y: tf.matmul(left[:2], y), normal(3, 4, 5))
    assert_equals_loop(lambda x: tf.matmul(x, left[:2], transpose_a=True), normal(3, 2, 5))


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 1, 5, 1)])
@pytest.mark.parametrize("reduction", [tf.reduce_sum, tf.reduce_mean])
def test_sums(reduction, shape):
    every_axes = [0, [0, 1], [0, 1, 2], [-4, 1, -2], [0, 2], [1, 2], None, [3], []]

    def reductions(x):
        return [reduction(x, axes, keepdims=k) for axes in every_axes for k in (False, True)]

    assert_equals_loop(reductions, normal(2, *shape))


def test_sum_to_bias():
    def gradients(*tensors):
        return [tf.raw_ops.BiasAddGrad(out_backprop=x) for x in tensors]

    assert_equals_loop(gradients, normal(3, 4, 5), normal(3, 2, 3, 5), normal(3, 2, 3, 4, 5))


def test_sum_of_terms():
    stacked, bias, shared = normal(3, 4, 5), normal(3, 5), normal(4, 5)
    zeros = tf.zeros([4, 5], tf.float64)

    def add(term, row):
        tiled = tf.tile(row[tf.newaxis], [4, 1])
        repeated = tf.tile(term[:2], [2, 1])
        return [
            tf.add_n([shared, term, shared]),
            tf.add_n([term, tiled]),
            tf.add_n([tiled, tiled]),
            tf.add_n([tiled, shared]),
            tf.add_n([tiled, term, zeros, shared * zeros, repeated]),
        ]

    assert_equals_loop(add, stacked, bias)


# Whole networks.


def batch_normalization(x):
    mean = tf.reduce_mean(x, [0, 1, 2], keepdims=True)
    variance = tf.reduce_mean(tf.square(x - mean), [0, 1, 2], keepdims=True)
    return (x - mean) * tf.math.rsqrt(variance + 1e-3)


def network_loss(weights, images, labels, normalized):
    kernel, bias, second_kernel, matrix, output_bias = weights
    x = tf.nn.bias_add(tf.nn.conv2d(images, kernel, 1, "SAME"), bias)
    x = batch_normalization(x) if normalized else x
    x = tf.nn.max_pool2d(tf.nn.relu(x), 2, 2, "SAME")
    x = tf.nn.max_pool2d(tf.tanh(tf.nn.conv2d(x, second_kernel, 1, "VALID")), 3, 2, "SAME")
    logits = tf.nn.bias_add(tf.matmul(tf.reshape(x, [images.shape[0], -1]), matrix), output_bias)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    return tf.reduce_mean(losses)


def network():
    images, labels = normal(6, 9, 9, 1), tf.constant([0, 1, 2, 3, 0, 1])
    shapes = [(3, 3, 1, 4), (4,), (2, 2, 4, 5), (20, 4), (4,)]
    return images, labels, [normal(*shape, seed=i) * 0.5 for i, shape in enumerate(shapes)]


def hessian_vector_product(normalized):
    images, labels, weights = network()

    def product(*tangents):
        with tf.autodiff.ForwardAccumulator(weights, list(tangents)) as accumulator:
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = network_loss(weights, images, labels, normalized)
            gradients = tape.gradient(loss, weights)
        return [accumulator.jvp(x, tf.UnconnectedGradients.ZERO) for x in (loss, *gradients)]

    return product, weights


@pytest.mark.sweep("True")
@pytest.mark.parametrize("normalized", [False, True])
def test_hessian_vector_products_of_a_network(normalized):
    product, weights = hessian_vector_product(normalized)
    tangents = [normal(3, *weight.shape, seed=9) for weight in weights]
    assert_equals_loop(product, *tangents)


def test_shared_tangents_are_not_taken_for_zero():
    product, weights = hessian_vector_product(normalized=False)
    shared = [normal(*weight.shape, seed=7) for weight in weights]
    for stacked_index in (0, 3):

        def function(tangent, index=stacked_index):
            return product(*shared[:index], tangent, *shared[index + 1 :])

        assert_equals_loop(function, normal(3, *weights[stacked_index].shape, seed=9))


def test_a_compiled_function_still_compiles():
    image, gradients = integers(2, 6, 6, 2), normal(3, 2, 3, 3, 2)
    pooled = tf.nn.max_pool2d(image, 2, 2, "VALID")

    def backward(grad):
        return tf.raw_ops.MaxPoolGrad(
            orig_input=image, orig_output=pooled, grad=grad, **POOLS["2x2"]
        )

    @tf.function(autograph=False, jit_compile=True)
    def compiled(gradients):
        return tf.vectorized_map(backward, gradients)

    # The compiler resolves ties in its own way; the sum over a window has no ties.
    expected = tf.reduce_sum(gradients, [1, 2, 3])
    np.testing.assert_allclose(tf.reduce_sum(compiled(gradients), [1, 2, 3]), expected)


# Registration.


def test_the_stock_rules_are_back_afterwards():
    registry = tf_vectorization._pfor._pfor_converter_registry
    before = dict(registry)
    assert any(isinstance(rule, functools.partial) for rule in before.values())
    with tf_vectorization.installed():
        assert registry == before
    assert registry == before
    code = """
import keras_fds
from keras_fds.internals import tf_vectorization
registry = tf_vectorization._pfor._pfor_converter_registry
before = dict(registry)
with tf_vectorization.installed():
    assert registry != before
assert registry == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
