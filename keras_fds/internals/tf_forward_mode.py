"""Forward mode that puts products into the graph that is being built.

TensorFlow makes a function of every operation's product and calls it. In a graph these calls only
cost time: a third of the tracing, and `tf.vectorized_map` converts each function by itself.
"""

import contextlib
import threading

import tensorflow as tf
from tensorflow.python import pywrap_tfe as _pywrap_tfe
from tensorflow.python.eager import forwardprop as _forwardprop
from tensorflow.python.eager import forwardprop_util as _forwardprop_util

from keras_fds.internals import tf_products

_HANDLES = (tf.resource, tf.variant)
_lock, _open = threading.Lock(), []  # Accumulators in use, of all threads.
_thread = threading.local()


@contextlib.contextmanager
def in_place(accumulator):
    """While open, products of an active `tf.autodiff.ForwardAccumulator` are not function calls.

    Only for graphs that are being built: each product also records unused operations, which
    TensorFlow prunes.
    """
    outside, _thread.accumulator = getattr(_thread, "accumulator", None), accumulator
    with _lock:
        _open.append(accumulator)
        _pywrap_tfe.TFE_Py_RegisterJVPFunction(_product_in_place)
    try:
        yield
    finally:
        _thread.accumulator = outside
        with _lock:
            _open.pop()
            if not _open:
                _pywrap_tfe.TFE_Py_RegisterJVPFunction(_forwardprop._jvp_dispatch)


def _product_in_place(operation_type, attributes, inputs, outputs, tangents, use_batch=False):
    accumulator = getattr(_thread, "accumulator", None)
    is_covered = accumulator is not None and not (use_batch or tf.executing_eagerly())
    # Others may be open too, opened by the function itself: their order matters.
    is_covered = is_covered and len(_forwardprop_util.pack_tangents([]).indices) == 1
    is_covered = is_covered and not any(x.dtype in _HANDLES for x in (*inputs, *outputs))
    if not is_covered:
        stock = _forwardprop._jvp_dispatch
        return stock(operation_type, attributes, inputs, outputs, tangents, use_batch)
    accumulator._pop_accumulator()
    try:
        return tf_products.product(operation_type, attributes, inputs, outputs, tangents)
    finally:
        accumulator._push_accumulator()
