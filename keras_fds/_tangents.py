"""Jacobian-vector products along many tangents at once.

The only file that opens a `tf.autodiff.ForwardAccumulator`.
"""

import tensorflow as tf

from keras_fds import _vectorization

_vectorization.register()


def jacobian_vector_products(function, primals, tangents):
    """Evaluates a function and pushes K tangents of its arguments through it.

    With `outputs, extra = function(*primals)` and J the Jacobian of `outputs`:
    `products[k] = J · tangents[k]`. The computation of `function` is shared by all tangents,
    and K may be unknown when a `tf.function` is traced.

    Args:
        function: Takes `*primals`, returns `(outputs, extra)`, two structures of tensors.
        primals: Tuple of structures of floating-point tensors.
        tangents: The same structure, each tensor with one more leading axis of length K.

    Returns:
        `(outputs, extra, products)`; `products` has the structure of `outputs` with the
        leading axis K. Outputs that do not depend on the primals have zero products.
    """
    outputs, extra = function(*primals)

    def one_product(tangent):
        # Every primal a tensor of its own: an accumulator knows tensors by identity.
        fresh = tf.nest.map_structure(tf.identity, primals)
        with tf.autodiff.ForwardAccumulator(
            tf.nest.flatten(fresh), tf.nest.flatten(tangent)
        ) as accumulator:
            inner_outputs, _ = function(*fresh)
        return tf.nest.map_structure(
            lambda output: accumulator.jvp(output, tf.UnconnectedGradients.ZERO), inner_outputs
        )

    return outputs, extra, tf.vectorized_map(one_product, tangents)
