"""Compiled functions, without a graph rewrite of TensorFlow's that breaks loops."""

import contextlib
import functools

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context


def compiled(function):
    """A new `tf.function` without the warning of frequent traces: each model needs its own."""
    function = tf.function(function, autograph=False, reduce_retracing=True)
    function._omit_frequent_tracing_warning = True  # TensorFlow warns from the fifth on.

    @functools.wraps(function)
    def call(*arguments):
        with _without_memory_rewrites():
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
