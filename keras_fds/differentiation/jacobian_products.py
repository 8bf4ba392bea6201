"""Jacobian-vector products along many tangents at once.

The only file that opens a `tf.autodiff.ForwardAccumulator`.
"""

import functools
import random

import numpy as np
import tensorflow as tf

from keras_fds.functional import keeping_random_state
from keras_fds.internals import keras_layers, tf_forward_mode, tf_vectorization


def jacobian_vector_products(function, primals, tangents, chunk_size=None):
    """Evaluates a function and pushes K tangents of its arguments through it.

    With `outputs, extra = function(*primals)` and J the Jacobian of `outputs`:
    `products[k] = J · tangents[k]`. The computation of `function` is shared by all tangents,
    and K may be unknown when a `tf.function` is traced. The products are computed together in
    forward mode. Where TensorFlow's forward mode fails, they are computed one by one in reverse
    mode, equally exact.

    Args:
        function: Takes `*primals`, returns `(outputs, extra)`, two structures of tensors.
        primals: Tuple of structures of floating-point tensors.
        tangents: The same structure, each tensor with one more leading axis of length K. An
            argument with `None` in its place is constant.
        chunk_size: Number of tangents that are pushed at once. It bounds the memory of
            intermediate results. Defaults to `None`, all.

    Returns:
        `(outputs, extra, products)`; `products` has the structure of `outputs` with the
        leading axis K. Outputs that do not depend on the primals have zero products. Where all
        arguments are constant, `products` is `None`.
    """
    if all(tangent is None or not tf.nest.flatten(tangent) for tangent in tangents):
        return *with_fixed_rng(function)(*primals), None
    function, primals, tangents = _without_constants(function, primals, tangents)
    tf.nest.assert_same_structure(primals, tangents, check_types=False)
    function = with_fixed_rng(function)
    outputs, extra = function(*primals)
    one_product = functools.partial(_forward, function, primals)
    try:
        with tf_vectorization.installed():
            if chunk_size is None:
                products = tf.vectorized_map(one_product, tangents)
            else:
                products = _in_groups(one_product, outputs, tangents, chunk_size)
    except keras_layers.NotTwiceDifferentiable:
        raise
    except Exception as error:
        # The function itself has just run, so TensorFlow's forward mode or its vectorisation
        # failed: they support neither loops (`tf.while_loop`, recurrent layers) nor `tf.cond`.
        try:
            products = _one_by_one(function, primals, tangents, outputs)
        except LookupError:
            with keras_layers.explaining("model"):
                raise
        except Exception:
            raise error  # noqa: B904
    return outputs, extra, products


def _without_constants(function, primals, tangents):
    """The same without the arguments that are constant."""
    moves = [tangent is not None for tangent in tangents]

    def of_moving(*arguments):
        moving = iter(arguments)
        return function(*(next(moving) if m else primal for m, primal in zip(moves, primals)))

    chosen = ([each for each, m in zip(group, moves) if m] for group in (primals, tangents))
    return of_moving, *map(tuple, chosen)


def with_fixed_rng(function):
    """The function, with the same random numbers of Python and NumPy in every call.

    Such numbers are drawn when the function is traced, as by Keras's AugMix, and tangents need the
    same ones as the outputs. The state of both generators is restored after every call.
    """
    python, legacy = random.getstate(), np.random.get_state()

    def alike(*primals):
        with keeping_random_state():
            random.setstate(python)
            np.random.set_state(legacy)
            return function(*primals)

    return alike


def _forward(function, primals, tangent):
    """One product in forward mode."""
    # Every primal becomes a tensor of its own: an accumulator knows tensors by identity.
    fresh = tf.nest.map_structure(tf.identity, primals)
    accumulator = tf.autodiff.ForwardAccumulator(tf.nest.flatten(fresh), tf.nest.flatten(tangent))
    with accumulator, tf_forward_mode.in_place(accumulator):
        outputs, _ = function(*fresh)
    return tf.nest.map_structure(
        # The product of an embedding's gradient is sparse; this makes it dense.
        lambda output: tf.convert_to_tensor(accumulator.jvp(output, tf.UnconnectedGradients.ZERO)),
        outputs,
    )


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


def _one_by_one(function, primals, tangents, outputs):
    """The products by two reverse passes, which TensorFlow also has for loops.

    The product of the transposed Jacobian with a cotangent is linear in the cotangent, and the
    transpose of that linear map is the Jacobian. The value of the cotangent does not matter.
    """

    def one_product(tangent):
        fresh = tf.nest.map_structure(tf.identity, primals)
        flat = tf.nest.flatten(fresh)
        with tf.GradientTape(watch_accessed_variables=False) as transposing:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(flat)
                inner, _ = function(*fresh)
            inner = tf.nest.flatten(inner)
            cotangents = [tf.ones_like(output) for output in inner]
            transposing.watch(cotangents)
            transposed = tape.gradient(inner, flat, cotangents, "zero")
            transposed = [tf.convert_to_tensor(t) for t in transposed]
        products = transposing.gradient(transposed, cotangents, tf.nest.flatten(tangent), "zero")
        products = [tf.convert_to_tensor(product) for product in products]
        return tf.nest.pack_sequence_as(outputs, products)

    signature = tf.nest.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype), outputs)
    return tf.map_fn(one_product, tangents, parallel_iterations=1, fn_output_signature=signature)
