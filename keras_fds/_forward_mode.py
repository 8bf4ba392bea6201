"""Forward mode whose products are operations of the graph that is being built.

TensorFlow makes a function of every operation's product and calls that. When a graph is built
the calls only cost: a third of the time to trace, and `tf.vectorized_map` converts each function
by itself. Where TensorFlow lacks the internals used here, its own way remains.
"""

import contextlib
import threading

import tensorflow as tf

try:
    from tensorflow.python import pywrap_tfe as _pywrap_tfe
    from tensorflow.python.eager import execute as _execute
    from tensorflow.python.eager import forwardprop as _forwardprop
    from tensorflow.python.eager import forwardprop_util as _forwardprop_util
except ImportError:
    _forwardprop = None

_thread = threading.local()


@contextlib.contextmanager
def in_place(accumulator):
    """While open, products of an active `tf.autodiff.ForwardAccumulator` are no function calls.

    Only for graphs that are being built: each product also records operations that nothing
    uses, which TensorFlow prunes.
    """
    outside, _thread.accumulator = getattr(_thread, "accumulator", None), accumulator
    try:
        yield
    finally:
        _thread.accumulator = outside


def _register():
    """Puts `_product` before TensorFlow's own way, once; False where that is not possible."""
    try:
        stock = _forwardprop._jvp_dispatch
        used = _execute.record_gradient, _forwardprop_util.pack_tangents
        used += _forwardprop.ForwardAccumulator._push_accumulator, _pywrap_tfe
        _pywrap_tfe.TFE_Py_RegisterJVPFunction(_with_stock(stock))
    except AttributeError:
        return False
    return True


def _with_stock(stock):
    def product(operation_type, attributes, inputs, outputs, tangents, use_batch=False):
        accumulator = getattr(_thread, "accumulator", None)
        is_covered = accumulator is not None and not use_batch
        # Others may be open too, opened by the function itself: their order matters.
        is_covered = is_covered and len(_forwardprop_util.pack_tangents([]).indices) == 1
        is_covered = is_covered and not any(x.dtype in _HANDLES for x in (*inputs, *outputs))
        if not is_covered:
            return stock(operation_type, attributes, inputs, outputs, tangents, use_batch)
        accumulator._pop_accumulator()
        try:
            return _product(operation_type, attributes, inputs, outputs, tangents)
        finally:
            accumulator._push_accumulator()

    return product


_HANDLES = (tf.resource, tf.variant)


def _product(operation_type, attributes, inputs, outputs, tangents):
    """The Jacobian-vector product of one operation, by transposing its gradient.

    The gradient is linear in what it is multiplied with, so that any value serves.
    """
    moving = [i for i, x in enumerate(inputs) if _is_continuous(x)]
    # Each a tensor of its own, also where an operation has the same input twice.
    inputs = [tf.identity(x) if i in moving else x for i, x in enumerate(inputs)]
    watched, moved = [inputs[i] for i in moving], [y for y in outputs if _is_continuous(y)]
    with tf.GradientTape(watch_accessed_variables=False) as transposing:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            _execute.record_gradient(operation_type, inputs, attributes, outputs)
        cotangents = [tf.ones_like(y) for y in moved]
        transposing.watch(cotangents)
        gradients = tape.gradient(moved, watched, cotangents, "zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    products = transposing.gradient(gradients, cotangents, [tangents[i] for i in moving])
    products = iter(p if p is None else tf.convert_to_tensor(p) for p in products)
    return [next(products) if _is_continuous(y) else None for y in outputs]


def _is_continuous(tensor):
    return tensor.dtype.is_floating or tensor.dtype.is_complex


IS_IN_PLACE = _register()
