"""What the graph of a training step must not do: side effects, Python code, random numbers.

A step runs as a pure function, several times when it is differentiated. Keras variables that it
assigns are part of its state. A `tf.Variable` would be assigned again each time.
"""

import warnings

_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
_RANDOM = (
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "TruncatedNormal",
    "RandomShuffle",
    "RandomGamma",
    "RandomPoissonV2",
    "Multinomial",
)
_WRITING = (
    "AssignVariableOp",
    "AssignAddVariableOp",
    "AssignSubVariableOp",
    "ResourceScatterAdd",
    "ResourceScatterSub",
    "ResourceScatterMul",
    "ResourceScatterDiv",
    "ResourceScatterMin",
    "ResourceScatterMax",
    "ResourceScatterUpdate",
    "ResourceScatterNdUpdate",
    "ResourceScatterNdAdd",
    "ResourceScatterNdSub",
    "ResourceStridedSliceAssign",
    "LookupTableInsertV2",
    "MutableDenseHashTableInsert",
)


def check_writes(model, graph):
    """Raises for side effects and Python code in the graph of a step, warns of random numbers."""
    for operation in graph.get_operations():
        if operation.type in _WRITING:
            _refuse_write(model, _variable_name(graph, operation), operation.name)
        if operation.type in _PYTHON:
            raise ValueError(
                f"The model {model.name!r} runs Python code (tf.py_function, tf.numpy_function) in "
                f"{operation.name!r}, which cannot be differentiated twice. Write it with "
                "TensorFlow, or move it into the data pipeline."
            )
        if operation.type in _RANDOM:
            warnings.warn(
                f"The model {model.name!r} draws random numbers in {operation.name!r} that cannot "
                "be drawn again, so hypergradients are not exact. Draw them with keras.random and "
                "a keras.random.SeedGenerator that the layer keeps.",
                stacklevel=6,
            )
    # Those in the branches of conditions and in loops.
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            if node.op in _WRITING:
                _refuse_write(model, "", node.name)


def _variable_name(graph, operation):
    """The name of the `tf.Variable` that an operation writes, or nothing."""
    for variable in graph.variables:
        if graph.capture(variable.handle) is operation.inputs[0]:
            return repr(variable.name)
    return ""


def _refuse_write(model, name, operation):
    raise ValueError(
        f"The model {model.name!r} assigns the tf.Variable {name or 'of an operation'} in its "
        f"training step ({operation!r}), where it would be assigned several times per step and "
        "could not be restored. Make it a Keras variable: `self.add_weight(..., trainable=False)` "
        "in a layer, or keras.Variable."
    )
