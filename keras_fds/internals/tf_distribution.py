"""Internals of tf.distribute: the scopes of strategies."""

import contextlib

from tensorflow.python.distribute import distribute_lib
from tensorflow.python.framework import ops


@contextlib.contextmanager
def outside_of_scopes():
    """While open, code runs as if no strategy's scope were open."""
    graph = ops.get_default_graph()
    creators = graph._variable_creator_stack
    graph._variable_creator_stack = []
    distribute_lib._push_per_thread_mode(distribute_lib._get_default_replica_mode())
    try:
        yield
    finally:
        distribute_lib._pop_per_thread_mode()
        graph._variable_creator_stack = creators
