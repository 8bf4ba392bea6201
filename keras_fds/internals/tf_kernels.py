"""Which devices have a kernel for each operation of a traced function."""

import functools

import tensorflow as tf
from tensorflow.python.framework import kernels as _kernels

_ARGUMENTS = ("Placeholder", "_Arg", "_Retval")


@functools.cache
def xla():
    """The name of the XLA compiler's device, once its kernels are registered."""
    with tf.init_scope():
        tf.function(lambda: tf.zeros([]), jit_compile=True)()
    return "XLA_GPU_JIT" if tf.config.get_visible_devices("GPU") else "XLA_CPU_JIT"


def nodes(concrete_function):
    """The nodes of a traced function, with those of the functions that it calls."""
    graph = concrete_function.graph.as_graph_def()
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def lacking(concrete_function, *devices):
    """The operations that none of the devices has a kernel for: sorted texts with their types."""
    found = set()
    for node in nodes(concrete_function):
        if node.op in _ARGUMENTS or any(_fits(node, kernel) for kernel in _of(node.op, devices)):
            continue
        types = [tf.as_dtype(a.type).name for k, a in node.attr.items() if k == "T" and a.type]
        found.add(f"{node.op} of {types[0]}" if types else node.op)
    return sorted(found)


@functools.cache
def _of(operation, devices):
    registered = _kernels.get_registered_kernels_for_op(operation).kernel
    return [kernel for kernel in registered if kernel.device_type in devices]


def _fits(node, kernel):
    """Whether a kernel takes the types of a node."""
    return all(
        node.attr[constraint.name].type in constraint.allowed_values.list.type
        for constraint in kernel.constraint
        if constraint.name in node.attr and node.attr[constraint.name].type
    )
