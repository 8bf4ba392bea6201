"""A float64 twin of the user's model, which stays unchanged."""

import contextlib
import json
import os
import tempfile

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import unpack
from keras_fds.functional.model import kept_with
from keras_fds.functional.rebuild import build_compiled, keeping_random_state
from keras_fds.internals import keras_layers, keras_models


@contextlib.contextmanager
def float64():
    """While open, float64 is the default. Then Python's and NumPy's random state is restored."""
    policy = keras.config.dtype_policy()
    with keras_layers.floatx("float64"), keeping_random_state():
        try:
            keras.config.set_dtype_policy("float64")
            yield
        finally:
            keras.config.set_dtype_policy(policy)


def in_float64(dataset):
    """A dataset whose floats are float64. A `PyDataset` stays: its floats become `floatx` later."""
    if not isinstance(dataset, tf.data.Dataset):
        return dataset

    def cast(tensor):
        return tf.cast(tensor, "float64") if tensor.dtype.is_floating else tensor

    return dataset.map(lambda *batch: tf.nest.map_structure(cast, batch))


def float64_twin(model, make_model, batches):
    """A float64 model of the same architecture, state and schedules, compiled alike.

    `make_model` makes it, or else Keras rebuilds it. Both models must compute the same on the first
    of the `batches`, which are in float64.
    """
    twin = None
    if make_model is None:
        kept, key = kept_with(model), ("twin", str(batches.spec))
        config, twin = kept.get(key, (None, None))
        if config is None or config != _config_of(model):
            twin = None
    if twin is None:
        twin = _new_twin(model, make_model, batches)
        if make_model is None:
            kept_with(model)[key] = _config_of(model), twin
    if twin.optimizer.buckets.size == model.optimizer.buckets.size:  # Else not known yet.
        twin.optimizer.coordinates = model.optimizer.coordinates
    if model.built:
        _copy_state(model, twin)
        _check_same(model, twin, unpack(batches.first)[0])
    return twin


def _config_of(model):
    """The configs of a model and its optimizer as text; `None` if they are not known."""
    try:
        configs = [model.get_config(), model.optimizer.get_config()]
        return json.dumps(configs, sort_keys=True, default=repr)
    except Exception:  # Whatever a layer of the user's own raises.
        return None


def _new_twin(model, make_model, batches):
    problem = f"The model {model.name!r} cannot be rebuilt in float64 from its config."
    with _remedied(problem, make_model):
        twin = keras_models.rebuilt_in_float64(model) if make_model is None else make_model()
    if not isinstance(twin, keras.Model) or twin is model:
        raise ValueError(f"`make_model` must return a newly made keras.Model. Received: {twin!r}")
    arguments = keras_models.losses_in_float64(twin if twin.compiled else model)
    optimizer = model.optimizer
    twin_optimizer = type(optimizer).from_config(optimizer.get_config())
    if type(twin).compile is not keras.Model.compile and not twin.compiled:
        raise ValueError(
            f"{type(model).__name__} overrides `compile`, so its twin cannot be compiled. Use "
            "check_hypergradients with `make_model=`, a function that returns a compiled model."
        )
    keras.Model.compile(twin, optimizer=twin_optimizer, jit_compile=model.jit_compile, **arguments)
    problem = (
        f"The model {twin.name!r} was rebuilt in float64 from its config, but cannot be built."
    )
    with _remedied(problem, make_model), keras_layers.twice_differentiable():
        build_compiled(twin, batches.spec)
    return twin


_REMEDY = (
    "Give its layers a `get_config` from which Keras can rebuild them, or use check_hypergradients "
    "with `make_model=`, a function that returns a newly made model."
)


@contextlib.contextmanager
def _remedied(problem, make_model):
    """Says what to do about the errors of a model that Keras rebuilds."""
    try:
        yield
    except Exception as error:
        if make_model is not None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{problem} {_REMEDY} ({type(error).__name__}: {reason})") from error


def _copy_state(model, twin):
    shapes, expected = ([tuple(v.shape) for v in m.variables] for m in (twin, model))
    if shapes != expected:
        raise ValueError(
            f"A new model for {model.name!r} must have variables {expected}. Received: {shapes}. "
            f"{_REMEDY}"
        )
    _copy_derived_state(model, twin)
    for mine, other in zip(twin.variables, model.variables):
        value = other.numpy()
        mine.assign(value.astype("float64") if tf.as_dtype(mine.dtype).is_floating else value)


def _copy_derived_state(model, twin):
    """Copies what layers save beside their variables, such as tables."""
    for mine, other in _pairs(model, twin):
        store = {}
        try:
            other.save_own_variables(store)
            mine.load_own_variables({k: _as_array(v) for k, v in store.items()})
            if hasattr(other, "save_assets") and hasattr(mine, "load_assets"):
                with tempfile.TemporaryDirectory() as folder:
                    other.save_assets(folder)
                    if os.listdir(folder):
                        mine.load_assets(folder)
        except Exception as error:
            raise ValueError(
                f"The state of the {keras_layers.named(other)} cannot be copied to float64: "
                f"{type(error).__name__}: {error}"
            ) from error


def _as_array(value):
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def _pairs(model, twin):
    """`(layer of the twin, layer of the model)`, where both have the same layers."""
    mine, other = map(keras_layers.layers_of, (twin, model))
    if [type(layer) for layer in mine] != [type(layer) for layer in other]:
        return []
    return list(zip(mine, other))


# ------------------------------------------------------------------------- is it the same function
def _check_same(model, twin, inputs):
    """Raises a `ValueError` when a layer of the twin gives something else than the model's."""
    twin_of = {id(other): mine for mine, other in _pairs(model, twin)}
    own = model.variable_dtype
    narrow = tf.nest.map_structure(lambda t: _cast(t, own), inputs)
    with (
        keras_layers.floatx(own),
        keras_layers.recorded_calls(model) as calls,
        keras.StatelessScope(),
    ):
        model(narrow, **keras_layers.training_argument(model, False))
    for layer, arguments, keywords, outputs in calls:
        mine = twin_of.get(id(layer))
        if mine is None or keras_layers.is_composition(layer) or _is_random(layer):
            continue
        arguments, keywords = tf.nest.map_structure(
            lambda t, to=mine.compute_dtype: _cast(t, to), (arguments, keywords)
        )
        with keras.StatelessScope(), keras_layers.twice_differentiable():
            try:
                received = mine(*arguments, **keywords)
            except Exception as error:
                raise ValueError(
                    f"The {keras_layers.named(layer)} cannot compute in float64: "
                    f"{type(error).__name__}: {error}. Move it in front of the model, into the "
                    "data pipeline."
                ) from error
        if not _alike(outputs, received, layer.compute_dtype):
            raise ValueError(
                f"The {keras_layers.named(layer)} computes something else in its float64 twin, so "
                "hypergradients would be those of another model. It keeps state that its "
                "`save_own_variables`, `save_assets` and `get_config` leave out: add it there, or "
                "use check_hypergradients with `make_model=`."
            )


def _is_random(layer):
    return any(keras_layers.seed_generators_of(part) for part in keras_layers.layers_of(layer))


def _cast(tensor, dtype):
    is_floating = tf.is_tensor(tensor) and tensor.dtype.is_floating
    return tf.cast(tensor, dtype) if is_floating else tensor


def _alike(expected, received, dtype):
    """Whether outputs are the same up to the rounding of a dtype."""
    tolerance = 1e-3 if tf.as_dtype(dtype).size >= 4 else 0.1
    for a, b in zip(tf.nest.flatten(expected), tf.nest.flatten(received)):
        mask = getattr(a, "_keras_mask", None)
        a, b = (t.to_tensor() if isinstance(t, tf.RaggedTensor) else t for t in (a, b))
        a, b = (tf.sparse.to_dense(t) if isinstance(t, tf.SparseTensor) else t for t in (a, b))
        if not (tf.is_tensor(a) and tf.is_tensor(b)):
            continue
        if not a.dtype.is_floating:
            if a.shape != b.shape or np.mean(a.numpy() != b.numpy()) > 0.01:
                return False
            continue
        a, b = (tf.cast(t, "float64").numpy() for t in (a, b))
        if a.shape != b.shape:
            return False
        if mask is not None and tuple(mask.shape) == a.shape[: len(mask.shape)]:
            a, b = a[mask.numpy()], b[mask.numpy()]  # Masked values do not matter.
        scale = max(np.abs(a[np.isfinite(a)]).max(initial=0.0), 1e-30)
        difference = np.abs(np.nan_to_num(a - b, nan=0.0 if np.isnan(a).any() else np.inf))
        if np.mean(difference > tolerance * scale) > 0.01:
            return False
    return True
