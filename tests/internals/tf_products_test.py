"""Products of single operations equal TensorFlow's own, for every rule."""

import numpy as np
import pytest
import tensorflow as tf

from keras_fds.internals import tf_forward_mode, tf_products

IMAGE = (2, 6, 6, 2)
KERNEL = (3, 3, 2, 4)
raw = tf.raw_ops
WINDOWS = {"ksize": [1, 2, 2, 1], "strides": [1, 2, 2, 1], "padding": "VALID"}
CONVOLUTION = {"strides": [1, 1, 1, 1], "padding": "VALID"}

# Operation -> (function of its floating-point inputs, shapes of these).
CASES = {
    "AvgPool": (lambda x: raw.AvgPool(value=x, **WINDOWS), IMAGE),
    "AvgPoolGrad": (
        lambda g: raw.AvgPoolGrad(orig_input_shape=IMAGE, grad=g, **WINDOWS),
        (2, 3, 3, 2),
    ),
    "BatchMatMulV2": (tf.linalg.matmul, (3, 2, 4), (3, 4, 2)),
    "BiasAddGrad": (lambda g: raw.BiasAddGrad(out_backprop=g), (3, 4)),
    "BroadcastTo": (lambda x: tf.broadcast_to(x, (3, 2)), (3, 1)),
    "Cast": (lambda x: raw.Cast(x=x, DstT=tf.float32), (3,)),
    "Conv2D": (lambda x, k: raw.Conv2D(input=x, filter=k, **CONVOLUTION), IMAGE, KERNEL),
    "Conv2DBackpropFilter": (
        lambda x, g: raw.Conv2DBackpropFilter(
            input=x, filter_sizes=KERNEL, out_backprop=g, **CONVOLUTION
        ),
        IMAGE,
        (2, 4, 4, 4),
    ),
    "Conv2DBackpropInput": (
        lambda k, g: raw.Conv2DBackpropInput(
            input_sizes=IMAGE, filter=k, out_backprop=g, **CONVOLUTION
        ),
        KERNEL,
        (2, 4, 4, 4),
    ),
    "DepthwiseConv2dNative": (
        lambda x, k: raw.DepthwiseConv2dNative(input=x, filter=k, **CONVOLUTION),
        IMAGE,
        KERNEL,
    ),
    "ExpandDims": (lambda x: tf.expand_dims(x, 1), (3, 2)),
    "GatherV2": (lambda x: tf.gather(x, [2, 0, 2], axis=1), (2, 3)),
    "Identity": (tf.identity, (3,)),
    "LeakyReluGrad": (lambda g, x: raw.LeakyReluGrad(gradients=g, features=x), (3, 4), (3, 4)),
    "MatMul": (lambda x, y: raw.MatMul(a=x, b=y, transpose_a=True), (4, 3), (4, 2)),
    "MaxPoolGrad": (
        lambda x, y, g: raw.MaxPoolGrad(orig_input=x, orig_output=y, grad=g, **WINDOWS),
        IMAGE,
        (2, 3, 3, 2),
        (2, 3, 3, 2),
    ),
    "MaxPoolGradGrad": (
        lambda x, y, g: raw.MaxPoolGradGrad(orig_input=x, orig_output=y, grad=g, **WINDOWS),
        IMAGE,
        (2, 3, 3, 2),
        IMAGE,
    ),
    "Mean": (lambda x: tf.reduce_mean(x, 0), (3, 2)),
    "Mul": (lambda x, y: x * y, (3, 2), (2,)),
    "Neg": (lambda x: -x, (3,)),
    "Pad": (lambda x: tf.pad(x, [[1, 0], [0, 2]]), (3, 2)),
    "Relu6Grad": (lambda g, x: raw.Relu6Grad(gradients=g, features=x), (3, 4), (3, 4)),
    "ReluGrad": (lambda g, x: raw.ReluGrad(gradients=g, features=x), (3, 4), (3, 4)),
    "Reshape": (lambda x: tf.reshape(x, (2, -1)), (3, 2)),
    "Slice": (lambda x: tf.slice(x, (1, 0), (2, 1)), (3, 2)),
    "Squeeze": (lambda x: tf.squeeze(x, 1), (1, 1, 3)),
    "StridedSlice": (lambda x: x[::2, tf.newaxis, 1], (3, 2)),
    "Sum": (lambda x: tf.reduce_sum(x, 1, keepdims=True), (3, 2)),
    "Tile": (lambda x: tf.tile(x, (1, 2)), (3, 2)),
    "Transpose": (tf.transpose, (3, 2)),
    # Sums, whose terms may broadcast, and others by transposition.
    "AddV2": (lambda x, y: x + y, (3, 2), (2,)),
    "Sub": (lambda x, y: x - y, (2,), (3, 2)),
    "AddN": (lambda x, y, z: tf.add_n([x, y, z]), (3,), (3,), (3,)),
    "RealDiv": (lambda x, y: x / y, (3, 2), (2,)),
    "Tanh": (tf.tanh, (3,)),
}


def product(function, primals, tangents, moving, in_place):
    """The product where only the inputs `moving` have tangents; and the types of operations."""

    # Unknown shapes, as of batches.
    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, *p.shape[1:]], p.dtype) for p in (*primals, *tangents)
        ],
    )
    def compute(*arguments):
        inputs, along = list(arguments[: len(primals)]), arguments[len(primals) :]
        accumulator = tf.autodiff.ForwardAccumulator(
            [inputs[i] for i in moving], [along[i] for i in moving]
        )
        if in_place:
            with accumulator, tf_forward_mode.in_place(accumulator):
                y = function(*inputs)
        else:
            with accumulator:
                y = function(*inputs)
        return accumulator.jvp(y, tf.UnconnectedGradients.ZERO), y

    return compute(*primals, *tangents)


@pytest.mark.parametrize("name", CASES)
def test_products_are_tensorflows_own(name):
    function, *shapes = CASES[name]
    rng = np.random.default_rng(0)
    primals, tangents = (
        [tf.constant(rng.uniform(0.5, 2.0, shape) * rng.choice([-1, 1], shape)) for shape in shapes]
        for _ in "pt"
    )
    inputs = range(len(shapes))
    for moving in ([*inputs], *([i] for i in inputs)):
        (expected, _), (actual, y) = (
            product(function, primals, tangents, moving, in_place) for in_place in (False, True)
        )
        assert actual.shape == y.shape
        assert actual.dtype == y.dtype
        np.testing.assert_allclose(actual, expected, rtol=1e-6 if name == "Cast" else 1e-12)


def test_every_rule_is_tested():
    assert set(tf_products.MULTILINEAR) <= CASES.keys()
    assert set(tf_products.SIGNS) - {"Add"} <= CASES.keys()
