"""Compiled functions, without a rewrite of TensorFlow's that breaks loops."""

import contextlib
import functools

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context


def compiled(function):
    """A `tf.function` of its own for each object; one trace for each new model is meant."""
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

    Where a function needs over 205 MB, TensorFlow replaces sums of three and more by temporary
    variables. In a loop one is left behind by the last, unneeded iteration, and the next
    call fails: "AlreadyExistsError: Resource … tmp_var" (tensorflow#23780).
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
