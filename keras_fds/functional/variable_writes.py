"""What the graph of a training step may not do: side effects, Python code, random numbers.

A step runs as a pure function, several times where it is differentiated. Variables of Keras that it
assigns are part of its state; what TensorFlow writes by itself would be written again each time.
"""

import warnings

_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
_RANDOM = ("RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal")
_RANDOM += ("RandomShuffle", "RandomGamma", "RandomPoissonV2", "Multinomial")
_WRITING = ("AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp")
_WRITING += tuple(
    f"ResourceScatter{kind}"
    for kind in ("Add", "Sub", "Mul", "Div", "Min", "Max", "Update", "NdUpdate", "NdAdd", "NdSub")
)
_WRITING += ("ResourceStridedSliceAssign", "LookupTableInsertV2", "MutableDenseHashTableInsert")


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
        f"training step ({operation!r}), where it would be assigned several times a step and could "
        "not be put back. Make it a variable of Keras: `self.add_weight(..., trainable=False)` in "
        "a layer, or keras.Variable."
    )
