"""Internals of Keras models: building, rebuilding, losses and metrics."""

import inspect
import re

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.models.functional import Functional
from keras.src.saving import serialization_lib

from keras_fds.internals import keras_layers


def build_model(model, batch):
    """Creates all variables of a compiled model from the specs of a batch."""
    if not model.built:
        build_variables(model, batch[0])
    model._symbolic_build(data_batch=_keras_tensors(batch))


def build_variables(model, inputs):
    """Creates a model's variables from the specs of its inputs."""
    output_spec(model, inputs)


def output_spec(model, inputs):
    """The `KerasTensor`s that a model makes of inputs with these specs."""
    return keras_backend.compute_output_spec(model, _keras_tensors(inputs), training=False)


def _keras_tensors(specs):
    return keras.tree.map_structure(
        lambda t: keras.KerasTensor(
            t.shape, t.dtype.name, sparse=isinstance(t, tf.SparseTensorSpec)
        ),
        specs,
        none_is_leaf=False,
    )


def rebuilt(model):
    """Another model of the same architecture, from the model's config; not compiled."""
    if not isinstance(model, (keras.Sequential, Functional)):
        return type(model).from_config(model.get_config())
    was_compiled, model.compiled = model.compiled, False
    try:  # A compiled copy would need every part of the optimizer registered with Keras.
        return keras.models.clone_model(model)
    finally:
        model.compiled = was_compiled


def rebuilt_in_float64(model):
    """Another model from the model's config, in which every floating-point dtype is float64."""
    parts = [
        part for layer in keras_layers.layers_of(model) for part in (layer, *vars(layer).values())
    ]
    kinds = [part if inspect.isfunction(part) else type(part) for part in parts]
    own = {
        kind.__name__: kind
        for kind in kinds
        if kind.__module__.split(".")[0] not in ("keras", "builtins")
    }
    # The config was made in this process, so its code may be run.
    with keras.saving.CustomObjectScope(own), serialization_lib.SafeModeScope(False):
        return type(model).from_config(_in_float64(model.get_config()))


def _in_float64(config):
    """A copy of a JSON-like config with floating-point dtypes and policies in float64."""
    if isinstance(config, (list, tuple)):
        return type(config)(map(_in_float64, config))
    if not isinstance(config, dict):
        return config
    kind = getattr(keras.layers, str(config.get("class_name")), None)
    if isinstance(kind, type) and keras_layers.is_float32_only(kind):
        return config
    if config.get("class_name") == "DTypePolicy" and "float" in config["config"]["name"]:
        return {**config, "config": {"name": "float64"}}
    changed = {key: _in_float64(value) for key, value in config.items()}
    dtype = config.get("dtype")
    if isinstance(dtype, str) and re.search("float", dtype):
        changed["dtype"] = "float64"
    return changed


def losses_in_float64(model):
    """`{"loss", "loss_weights"}` of a compiled model, to compile another one in float64."""

    def converted(loss):
        if isinstance(loss, keras.losses.Loss):
            # Not `copy.copy`, which in Keras goes through `get_config`.
            stock, loss = loss, object.__new__(type(loss))
            vars(loss).update(vars(stock))
            loss._dtype_policy, loss._dtype = keras.dtype_policies.get("float64"), "float64"
            if loss_arguments(loss) is not None:
                loss._fn_kwargs = dict(loss._fn_kwargs)
        return loss

    weights = getattr(model._compile_loss, "_user_loss_weights", None)
    return {"loss": tf.nest.map_structure(converted, model.loss), "loss_weights": weights}


def call_model(model, state, inputs, training, tape=None):
    """The `Called` of a model called as in its `train_step`, on other values of its variables.

    The state is `(variable, tensor)` pairs; the tape is that of the step's gradient.
    """
    return keras_layers.call_layer(
        model, state, inputs, tape=tape, **keras_layers.training_argument(model, training)
    )


def compiled_loss(model, state, batch, outputs, losses, training, tape=None):
    """`compute_loss` with given added losses, see `call_model`, and the scope it ran in."""
    x, y, sample_weight = batch
    with (
        keras_layers.RecordingScope(state_mapping=state, tape=tape) as scope,
        # `compute_loss` adds `model.losses`, which the override replaces.
        keras_layers.replaced(model, _losses_override=list(losses)),
        keras_layers.twice_differentiable(loss_of=model),
        keras_layers.explaining(f"loss {name_of_loss(model.loss)}"),
    ):
        loss = model._compute_loss(x, y, outputs, sample_weight, training)
    return loss, scope


def compilation(model):
    """The objects, numbers and names that a compiled function of a model depends on, a list.

    These are the objects that `compile` replaces, and the plain attributes, tensors and variables
    of the layers, their regularizers, the losses and the wrapped optimizer: a trace holds them.
    """
    parts = [*keras_layers.layers_of(model), getattr(model.optimizer, "optimizer", None)]
    parts += [each.loss for each in compiled_losses(model)] + keras.tree.flatten(model.loss)
    found = [model.optimizer, model._compile_loss, model._compile_metrics, model._loss_tracker]
    found.append(model.jit_compile)
    seen = set()
    for part in parts:
        if part is None or id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        found.append(part)
        for name, value in sorted(vars(part).items()):
            if name in _CHANGING or (name.startswith("_") and name not in _COUNTING):
                continue
            values = value if isinstance(value, (list, tuple)) else [value]
            if isinstance(value, dict) and name == "_fn_kwargs":
                values = [each for pair in sorted(value.items()) for each in pair]
            if isinstance(value, (keras.Regularizer, keras.constraints.Constraint)):
                values = [value] + [each for _, each in sorted(vars(value).items())]
            found += [each for each in values if _is_plain(each) or _is_held(each)]
    return found


# Attributes that Keras changes while it calls and trains a model; private ones that count.
_CHANGING = (
    "built",
    "compiled",
    "history",
    "predict_function",
    "stop_evaluating",
    "stop_training",
    "test_function",
    "train_function",
)
_COUNTING = ("_trainable", "_layers", "_fn_kwargs")


def _is_plain(value):
    return value is None or isinstance(value, (bool, int, float, str))


def _is_held(value):
    """Whether a trace holds a value itself, and so would not see its replacement."""
    held = (keras.Variable, keras.layers.Layer, keras.Regularizer, keras.constraints.Constraint)
    return tf.is_tensor(value) or isinstance(value, held)


def same_compilation(one, other):
    """Whether functions with these two lists of `compilation` compute the same."""
    return len(one) == len(other) and all(
        a is b or (_is_plain(a) and type(a) is type(b) and a == b) for a, b in zip(one, other)
    )


def has_no_loss(model):
    """Whether a model is compiled without a loss and does not compute one by itself."""
    return model._compile_loss is None and type(model).compute_loss is keras.Model.compute_loss


def name_of_loss(loss):
    """The name of a compiled loss in messages."""
    return repr(getattr(loss, "name", None) or getattr(loss, "__name__", None) or loss)


def update_metrics(model, batch, loss, outputs):
    """Adds a batch to a model's loss tracker and compiled metrics."""
    x, y, sample_weight = batch
    model._loss_tracker.update_state(loss, sample_weight=batch_size(x))
    results = model.compute_metrics(x, y, outputs, sample_weight=sample_weight)
    if type(model).compute_metrics is not keras.Model.compute_metrics:
        own = sorted(set(results or ()) - set(model.get_metrics_result()))
        if own:
            raise ValueError(
                f"`compute_metrics` of {model.name!r} returns {', '.join(map(repr, own))}, which "
                "is not a metric of the model, so it cannot be kept from step to step. Make it a "
                "keras.metrics.Metric of the model."
            )


def batch_size(x):
    """The number of examples in a batch of inputs, as Keras counts them."""
    return tf.shape(next(part for part in keras.tree.flatten(x) if part is not None))[0]


def compiled_losses(model):
    """The compiled loss of each output: a list of tuples with `name`, `loss`, `loss_weights`.

    Keras reads it in every call. It is empty for a model without a compiled loss, or not built.
    """
    return getattr(model._compile_loss, "_flat_losses", None) or []


def reductions(model):
    """How the compiled losses reduce a batch, a set such as `{"sum_over_batch_size"}`."""
    return {getattr(each.loss, "reduction", None) for each in compiled_losses(model)} - {None}


def loss_arguments(loss):
    """The numbers that a stock loss passes on to its function, a dictionary, or None."""
    return getattr(loss, "_fn_kwargs", None)
