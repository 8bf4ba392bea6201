"""Small internals of TensorFlow."""

import contextlib
import platform
import threading

import tensorflow as tf
from tensorflow.python.framework import ops as _ops
from tensorflow.python.ops import custom_gradient as _custom_gradient
from tensorflow.python.util import _pywrap_util_port

_LIBRARIES = ("tensorflow", "keras", "keras_fds")
_within = threading.local()  # Whether a reported custom gradient is being traced.


@contextlib.contextmanager
def telling_of_custom_gradients(tell):
    """While open, `tell()` is called for every use of `tf.custom_gradient` in a graph.

    Those of TensorFlow, Keras and this package do not count: they are true derivatives.
    """
    stock = _custom_gradient._graph_mode_decorator

    def decorated(function, arguments, keywords):
        if (function.__module__ or "").split(".")[0] in _LIBRARIES:
            return stock(function, arguments, keywords)
        tell()
        outside, _within.custom_gradient = is_within_custom_gradient(), True
        try:
            return stock(function, arguments, keywords)
        finally:
            _within.custom_gradient = outside

    _custom_gradient._graph_mode_decorator = decorated
    try:
        yield
    finally:
        _custom_gradient._graph_mode_decorator = stock


def is_within_custom_gradient():
    """Whether a reported custom gradient is being traced."""
    return getattr(_within, "custom_gradient", False)


def rule_of_custom_gradient(operation):
    """The gradient that `tf.custom_gradient` has given an operation, or None."""
    if "_gradient_op_type" not in operation.node_def.attr:
        return None
    function = _ops.get_gradient_function(operation)
    return lambda *gradients: function(operation, *gradients)


def lacks_onednn():
    """Whether TensorFlow computes on an x86 CPU without oneDNN."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    lacks = is_x86 and not _pywrap_util_port.IsMklEnabled()
    return lacks and not tf.config.get_visible_devices("GPU")
