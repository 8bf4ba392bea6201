"""Measures whether TensorFlow's first and second derivatives of one layer are right.

The Hessian-vector products that an unroll would compute are compared with central finite
differences of the gradient, and the gradient with those of the value, in float64.
"""

import numpy as np
import tensorflow as tf

from keras_fds.differentiation.jacobian_products import jacobian_vector_products
from keras_fds.internals import keras_layers

# At one of these steps neither rounding nor a nearby kink dominates the difference.
_STEPS = (1e-4, 1e-5, 1e-6)
_NUM_TANGENTS = 2


def layer_error(layer, *inputs, training=True, seed=0, **keywords):
    """The greater relative error of a layer's gradient and of its Hessian-vector products.

    The scalar whose Hessian is taken is Σ c ∘ (y + y²/2) plus the layer's losses, for the
    layer's floating-point outputs y and random c; it moves with the layer's floating-point
    variables and inputs. The layer computes in float64; its inputs and keywords are structures
    of arrays. The error is relative to the largest component.
    """
    keywords = {**keras_layers.training_argument(layer, training), **keywords}
    generator = np.random.default_rng(seed)
    variables = [v for v in layer.variables if tf.as_dtype(v.dtype).is_floating]
    arguments = tf.nest.map_structure(_as_tensor, (inputs, keywords))
    moving = [t for t in tf.nest.flatten(arguments) if _is_floating(t)]

    def function(values, moved):
        state = zip(variables, values)
        moved = iter(moved)
        inputs, keywords = tf.nest.map_structure(
            lambda t: next(moved) if _is_floating(t) else t, arguments
        )
        with keras_layers.twice_differentiable():
            called = keras_layers.call_layer(layer, state, *inputs, **keywords)
        terms = [t for t in tf.nest.flatten(called.outputs) if _is_floating(t)]
        terms += called.added + called.penalties
        return terms, [called.scope.get_current_value(variable) for variable in variables]

    return hessian_error(function, ([v.value for v in variables], moving), generator)


def hessian_error(function, primals, generator):
    """The relative error of Hessian-vector products by float64 primals; see `layer_error`.

    `function(*primals)` gives `(outputs, state)`, two lists of float64 tensors: the outputs enter
    the scalar, the state is only differentiated once.
    """
    if not tf.nest.flatten(primals):
        return 0.0
    primals = tf.nest.map_structure(lambda t: tf.cast(t, "float64"), primals)
    tangents = tf.nest.map_structure(
        lambda t: tf.constant(generator.normal(size=[_NUM_TANGENTS, *t.shape])), primals
    )
    cotangent_seed = generator.integers(2**31, size=2)

    def gradient(*primals):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(tf.nest.flatten(primals))
            outputs, state = function(*primals)
            scalar = tf.zeros((), "float64")
            for i, y in enumerate(outputs):
                c = tf.random.stateless_uniform(tf.shape(y), cotangent_seed + i, dtype=y.dtype)
                scalar += tf.reduce_sum((0.5 + c) * (y + y * y / 2))
        flat = tf.nest.flatten(primals)
        gradients = tape.gradient(scalar, flat, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
        return gradients + state, (scalar, gradients)

    # As in an unroll, one trace serves every number of tangents.
    signature = [
        tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), primals),
        tf.nest.map_structure(lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), tangents),
    ]

    @tf.function(autograph=False, input_signature=signature)
    def evaluate(primals, tangents):
        outputs, (scalar, gradients), products = jacobian_vector_products(
            gradient, primals, tangents
        )
        slopes = tf.add_n(
            [
                tf.reduce_sum(tf.reshape(g * t, [tf.shape(t)[0], -1]), 1)
                for g, t in zip(gradients, tf.nest.flatten(tangents))
            ]
        )
        return [*outputs, scalar], [*products, slopes]

    def moved(step, k):
        points = tf.nest.map_structure(lambda p, t: p + step * t[k], primals, tangents)
        return evaluate(points, tangents)[0]

    _, products = evaluate(primals, tangents)
    differences = [
        [
            [(a - b) / (2 * step) for a, b in zip(moved(step, k), moved(-step, k))]
            for k in range(_NUM_TANGENTS)
        ]
        for step in _STEPS
    ]
    return max(
        min(_relative_error(products[part], [row[part] for row in each]) for each in differences)
        for part in (slice(-1), slice(-1, None))
    )


def _relative_error(products, differences):
    """Both lists of tensors: `products[i][k]` is to equal `differences[k][i]`."""
    expected = [np.stack([row[i] for row in differences]) for i in range(len(products))]
    scale = max((np.abs(each).max(initial=0) for each in expected), default=0)
    error = max(
        (np.abs(p.numpy() - e).max(initial=0) for p, e in zip(products, expected)), default=0
    )
    if not np.isfinite(error):
        return np.inf
    return float(error / scale) if scale else float(error)


def _is_floating(tensor):
    return tf.is_tensor(tensor) and tensor.dtype.is_floating


def _as_tensor(array):
    tensor = tf.convert_to_tensor(array) if isinstance(array, np.ndarray) else array
    return tf.cast(tensor, "float64") if _is_floating(tensor) else tensor
