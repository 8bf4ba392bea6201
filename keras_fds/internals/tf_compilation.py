"""Compiled functions, without a graph rewrite of TensorFlow's that breaks loops; and XLA."""

import contextlib
import functools
import warnings

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from keras_fds.internals import tf_kernels


def compiled(function):
    """A new `tf.function` without the warning of frequent traces: each model needs its own."""
    function = tf.function(function, autograph=False, reduce_retracing=True)
    function._omit_frequent_tracing_warning = True  # TensorFlow warns from the fifth on.

    @functools.wraps(function)
    def call(*arguments):
        with _without_memory_rewrites():
            return function(*arguments)

    return call


def by_xla(function, what):
    """A pure function that XLA compiles, for calls from compiled functions.

    XLA compiles it anew for every shape of its arguments, when they come. If XLA lacks one of its
    operations, a warning says so of `what`, and it is not compiled.
    """
    by_xla = tf.function(function, autograph=False, jit_compile=True)
    by_xla._omit_frequent_tracing_warning = True

    @functools.wraps(function)
    def call(*arguments):
        lacking = tf_kernels.lacking(by_xla.get_concrete_function(*arguments), tf_kernels.xla())
        if not lacking:
            return by_xla(*arguments)
        warnings.warn(
            f"XLA does not know {', '.join(lacking)} in {what}, which is not compiled by it "
            "therefore. Pass jit_compile=False to compile() to silence this.",
            RuntimeWarning,
            stacklevel=2,
        )
        return function(*arguments)

    return call


@contextlib.contextmanager
def _without_memory_rewrites():
    """While open, functions that are called are not rewritten to save memory in sums.

    When a function needs over 205 MB, TensorFlow replaces sums of three or more tensors by
    temporary variables. In a loop the last, unneeded iteration leaves one behind, and the next call
    fails: "AlreadyExistsError: Resource … tmp_var" (tensorflow#23780).
    """
    here = context.context()
    stock = here.function_call_options
    config = config_pb2.ConfigProto.FromString(stock.config_proto_serialized)
    off = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    config.graph_options.rewrite_options.memory_optimization = off
    here.function_call_options = context.FunctionCallOptions(
        executor_type=stock.executor_type, config_proto=config
    )
    try:
        yield
    finally:
        here.function_call_options = stock
