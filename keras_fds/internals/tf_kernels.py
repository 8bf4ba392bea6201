"""Which devices have a kernel for each operation of a traced function."""

import functools

import tensorflow as tf
from tensorflow.python.framework import kernels as _kernels
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

_ARGUMENTS = ("Placeholder", "_Arg", "_Retval")
_CALLS = (
    "If",
    "PartitionedCall",
    "StatefulPartitionedCall",
    "StatelessIf",
    "StatelessWhile",
    "While",
)


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


def reads_by_host(concrete_function):
    """What a GPU would have to copy to the host while it runs a traced function.

    These are the inputs that its kernels take from the host's memory, and that other kernels leave
    in the GPU's. (int32 numbers stay on the host: TensorFlow takes them for shapes and positions.)

    Returns:
        Sorted texts, such as `"Where → StridedSlice.begin (int64)"`.
    """
    graph = concrete_function.graph
    library = graph.as_graph_def().library.function
    bodies = [function_def_to_graph(f, include_library_functions=True) for f in library]
    found = set()
    for operation in [op for each in (graph, *bodies) for op in each.get_operations()]:
        inputs = _named(operation, operation.op_def.input_arg, operation.inputs)
        for name, tensor in inputs:
            if tensor.dtype in (tf.resource, tf.variant) or not _on_host(operation, name):
                continue
            if not (_is_constant(tensor.op) or _is_on_host(tensor)):
                where = f"{operation.type}.{name} ({tensor.dtype.name})"
                found.add(f"{tensor.op.type} → {where}")
    return sorted(found)


def _is_constant(operation):
    """Whether an operation is computed once, before the graph runs."""
    inputs = operation.inputs
    return operation.type == "Const" or (
        len(inputs) > 0 and all(_is_constant(each.op) for each in inputs)
    )


def _is_on_host(tensor):
    """Whether a tensor of a graph on a GPU is in the host's memory."""
    producer = tensor.op
    if producer.type in (*_ARGUMENTS, *_CALLS, "ReadVariableOp"):
        return tensor.dtype == tf.int32  # There is no such variable on a GPU.
    outputs = _named(producer, producer.op_def.output_arg, producer.outputs)
    return _on_host(producer, next(name for name, other in outputs if other is tensor))


def _on_host(operation, name):
    """Whether the GPU's kernel of an operation has an argument in the host's memory."""
    node = operation.node_def
    fitting = [kernel for kernel in _of(node.op, ("GPU", "DEFAULT")) if _fits(node, kernel)]
    return not fitting or name in fitting[0].host_memory_arg


def _named(operation, arguments, tensors):
    """`(name, tensor)` of the inputs or outputs of an operation, from its definition."""
    names = []
    for argument in arguments:
        count = 1
        if argument.number_attr:
            count = operation.get_attr(argument.number_attr)
        elif argument.type_list_attr:
            count = len(operation.get_attr(argument.type_list_attr))
        names += [argument.name] * count
    return list(zip(names, tensors, strict=True))
