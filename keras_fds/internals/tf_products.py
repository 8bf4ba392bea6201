"""The Jacobian-vector product of one TensorFlow operation, as few operations of the same graph.

Most operations of a network and its gradient are linear in each of some inputs: their product is a
sum of the same operation on tangents. The others are differentiated by transposing their gradient.
"""

import functools

import numpy as np
import tensorflow as tf
from tensorflow.python.eager.execute import record_gradient
from tensorflow.python.eager.record import record_operation

from keras_fds.internals import tf_graph

# Operations, and the inputs in each of which they are linear while the other inputs stay. In their
# other floating-point inputs they are constant between kinks.
MULTILINEAR = {
    "AvgPool": (0,),
    "AvgPoolGrad": (1,),
    "BatchMatMulV2": (0, 1),
    "BiasAddGrad": (0,),
    "BroadcastTo": (0,),
    "Cast": (0,),
    "Conv2D": (0, 1),
    "Conv2DBackpropFilter": (0, 2),
    "Conv2DBackpropInput": (1, 2),
    "DepthwiseConv2dNative": (0, 1),
    "ExpandDims": (0,),
    "GatherV2": (0,),
    "Identity": (0,),
    "LeakyReluGrad": (0,),
    "MatMul": (0, 1),
    "MaxPoolGrad": (2,),
    "MaxPoolGradGrad": (2,),
    "Mean": (0,),
    "Mul": (0, 1),
    "Neg": (0,),
    "Pad": (0,),
    "Relu6Grad": (0,),
    "ReluGrad": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "Squeeze": (0,),
    "StridedSlice": (0,),
    "Sum": (0,),
    "Tile": (0,),
    "Transpose": (0,),
}
SIGNS = {"Add": 1, "AddV2": 1, "Sub": -1}


def product(operation_type, attributes, inputs, outputs, tangents):
    """The tangents of an operation's outputs, a list, from those of its inputs.

    They are `None` for what is not floating point; all else is as TensorFlow records it in a graph.
    """
    if operation_type in MULTILINEAR:
        terms = [
            _same_operation(attributes, [*inputs[:i], tangents[i], *inputs[i + 1 :]], outputs[0])
            for i in MULTILINEAR[operation_type]
            if not is_zero(tangents[i])
        ]
    elif operation_type == "AddN":
        terms = [tangent for tangent in tangents if not is_zero(tangent)]
    elif operation_type in SIGNS:
        terms = _sum_or_difference(SIGNS[operation_type], inputs, outputs[0], tangents)
    else:
        rule = None
        if tf_graph.is_within_custom_gradient():
            rule = tf_graph.rule_of_custom_gradient(outputs[0].op)
        return _transposed(operation_type, attributes, inputs, outputs, tangents, rule)
    if not is_continuous(outputs[0]):
        return [None]
    total = tf.add_n(terms) if len(terms) > 2 else functools.reduce(tf.add, terms or [None])
    return [_of_shape(tf.zeros_like(outputs[0]) if total is None else total, outputs[0])]


def _same_operation(attributes, inputs, output):
    """The operation that gave an output, on other inputs."""
    operation = output.op
    result = output.graph.create_op(
        operation.type,
        inputs,
        [output.dtype],
        attrs={each.name: operation.node_def.attr[each.name] for each in operation.op_def.attr},
    )
    record_gradient(operation.type, inputs, attributes, result.outputs)
    return result.outputs[0]


def _sum_or_difference(sign, inputs, output, tangents):
    left, right = tangents
    if not is_zero(left) and not is_zero(right):
        return [left + right if sign > 0 else left - right]
    if is_zero(left) and is_zero(right):
        return []
    only, other = (left, inputs[1]) if is_zero(right) else (right, inputs[0])
    if only is right and sign < 0:
        only = -only
    is_whole = _broadcasts_to(other.shape, only.shape)
    return [only if is_whole else tf.broadcast_to(only, tf.shape(output))]


def _broadcasts_to(shape, larger):
    """Whether it is known that a sum of tensors of both shapes has the larger one."""
    if not shape.is_fully_defined() or larger.rank is None or shape.rank > larger.rank:
        return False
    pairs = zip(reversed(shape.as_list()), reversed(larger.as_list()))
    return all(size in (1, full) for size, full in pairs)


def _transposed(operation_type, attributes, inputs, outputs, tangents, rule=None):
    """The product by transposing the gradient, which is linear in its cotangent.

    The value of the cotangent does not matter: the outputs stand for it at no cost.
    """
    moving = [i for i, x in enumerate(inputs) if is_continuous(x)]
    # Each becomes a tensor of its own, also when an operation has the same input twice.
    inputs = [tf.identity(x) if i in moving else x for i, x in enumerate(inputs)]
    watched, moved = [inputs[i] for i in moving], [y for y in outputs if is_continuous(y)]
    with tf.GradientTape(watch_accessed_variables=False) as transposing:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            if rule is None:
                record_gradient(operation_type, inputs, attributes, outputs)
            else:
                record_operation(operation_type, outputs, inputs, rule)
        cotangents = [tf.identity(y) for y in moved]
        transposing.watch(cotangents)
        gradients = tape.gradient(moved, watched, cotangents, "zero")
        gradients = [tf.convert_to_tensor(g) for g in gradients]
    products = transposing.gradient(gradients, cotangents, [tangents[i] for i in moving])
    products = iter(products)
    return [_of_shape(next(products), y) if is_continuous(y) else None for y in outputs]


def _of_shape(tangent, output):
    """The tangent as a tensor of its output's shape, which TensorFlow may have lost."""
    if tangent is None:
        return None
    tangent = tf.convert_to_tensor(tangent)
    tangent.set_shape(output.shape)
    return tangent


def is_continuous(tensor):
    return tensor.dtype.is_floating or tensor.dtype.is_complex


def is_zero(tensor):
    """Whether a tangent is known to be zero, as those of constants are."""
    operation = tensor.op
    if operation.type == "ZerosLike":
        return True
    is_short = operation.type == "Const" and tensor.shape.num_elements() < 1e4
    if not is_short and operation.type != "Fill":
        return False
    value = tf.get_static_value(tensor if is_short else operation.inputs[1])
    return value is not None and not np.any(value)
