"""Jacobian-vector products along many tangents at once.

The only file that opens a `tf.autodiff.ForwardAccumulator`.
"""

import tensorflow as tf

from keras_fds import _vectorization

_vectorization.register()


def jacobian_vector_products(function, primals, tangents, tangents_per_pass=None):
    """Evaluates a function and pushes K tangents of its arguments through it.

    With `outputs, extra = function(*primals)` and J the Jacobian of `outputs`:
    `products[k] = J · tangents[k]`. The computation of `function` is shared by all tangents,
    and K may be unknown when a `tf.function` is traced.

    Args:
        function: Takes `*primals`, returns `(outputs, extra)`, two structures of tensors.
        primals: Tuple of structures of floating-point tensors.
        tangents: The same structure, each tensor with one more leading axis of length K.
        tangents_per_pass: How many tangents are pushed at once, which bounds the memory for
            intermediate results. Defaults to `None`, all.

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
            # A dense tensor, where the product of an embedding's gradient is sparse.
            lambda output: tf.convert_to_tensor(
                accumulator.jvp(output, tf.UnconnectedGradients.ZERO)
            ),
            inner_outputs,
        )

    if tangents_per_pass is None:
        return outputs, extra, tf.vectorized_map(one_product, tangents)
    return outputs, extra, _in_groups(one_product, outputs, tangents, tangents_per_pass)


def _in_groups(one_product, outputs, tangents, size):
    """`tf.vectorized_map` over groups of `size` tangents, one group after the other."""
    number = tf.shape(tf.nest.flatten(tangents)[0])[0]

    def one_group(begin, arrays):
        group = tf.nest.map_structure(lambda t: t[begin : begin + size], tangents)
        products = tf.nest.flatten(tf.vectorized_map(one_product, group))
        position = begin // size
        return begin + size, [a.write(position, p) for a, p in zip(arrays, products)]

    arrays = [
        tf.TensorArray(
            output.dtype, -(-number // size), infer_shape=False, element_shape=[None, *output.shape]
        )
        for output in tf.nest.flatten(outputs)
    ]
    _, arrays = tf.while_loop(
        lambda begin, _: begin < number, one_group, [0, arrays], parallel_iterations=1
    )
    return tf.nest.pack_sequence_as(outputs, [array.concat() for array in arrays])
