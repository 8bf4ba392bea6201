"""Internals of Keras optimizers: `apply` as a pure, differentiable function."""

import contextlib

import keras
import tensorflow as tf
from keras.src import backend as keras_backend
from keras.src.backend.common.stateless_scope import get_stateless_scope
from keras.src.backend.common.variables import Variable as CommonVariable
from keras.src.backend.tensorflow import core as keras_core
from keras.src.backend.tensorflow import linalg as keras_linalg
from keras.src.backend.tensorflow import numpy as keras_numpy
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.optimizers.base_optimizer import BaseOptimizer

from keras_fds.internals import keras_layers


class PureMixin(TFOptimizer):
    """Undoes what Keras's TensorFlow optimizer adds for `tf.distribute`.

    It stands between a stock optimizer and `TFOptimizer` in the method resolution order, so the
    optimizer's own methods stay.
    """


for _name, _method in vars(BaseOptimizer).items():
    if _name in vars(TFOptimizer) and _name != "__init__" and callable(_method):
        setattr(PureMixin, _name, _method)


def trained_variables(optimizer):
    """The variables that an optimizer was built for."""
    return optimizer._trainable_variables


def replace_variable(optimizer, old, new):
    """Puts another variable in the place of one of an optimizer's own, which is saved there."""
    tracker = vars(optimizer).pop("_tracker")  # It would track the variables a second time.
    optimizer._variables = [new if each is old else each for each in optimizer._variables]
    optimizer._tracker = tracker
    is_variable, _ = tracker.config["variables"]
    tracker.config["variables"] = is_variable, optimizer._variables
    tracker.stored_ids["variables"] ^= {id(old), id(new)}


def has_learning_rate_schedule(optimizer):
    """Whether the optimizer's learning rate is a schedule or a callable, not a number."""
    return not isinstance(optimizer._learning_rate, keras.Variable)


def config_of(optimizer):
    """An optimizer's config, with its learning rate as it is: a callable may have no config."""
    view = object.__new__(type(optimizer))
    vars(view).update(vars(optimizer))
    if has_learning_rate_schedule(optimizer):
        vars(view)["_learning_rate"] = tf.constant(0.0)
        return {**view.get_config(), "learning_rate": optimizer._learning_rate}
    return view.get_config()


# Optimizers take roots of averages of squared gradients. For a weight that never had a gradient the
# root is zero, and so is what it divides: its derivative does not matter as long as it is finite.
# The same holds for the norm of such weights' gradients in Muon.
def _square_root(x):
    """`sqrt` with the derivative 0 at 0."""
    zero = tf.equal(x, 0)
    return tf.where(zero, tf.zeros_like(x), tf.sqrt(tf.where(zero, tf.ones_like(x), x)))


def _power(x, y):
    """`pow` with the derivative 0 where `x` is 0 and it would be infinite."""
    root = tf.equal(x, 0) & (y > 0) & (y < 1)
    return tf.where(root, tf.zeros_like(x), tf.pow(tf.where(root, tf.ones_like(x), x), y))


class _Reading:
    """A variable's value that is read when it is used, as with a `tf.Variable`."""

    def __init__(self, read):
        self.read = read

    def __getattr__(self, name):
        return getattr(self.read(), name)

    def __tf_tensor__(self, dtype=None, name=None):
        return tf.convert_to_tensor(self.read(), dtype)


def _delegate(name):
    setattr(_Reading, name, lambda self, *others: getattr(tf.Tensor, name)(self.read(), *others))


for _name in tf.Tensor.OVERLOADABLE_OPERATORS:
    _delegate(_name)


@contextlib.contextmanager
def _read_when_used():
    """While open, `variable.value` in a stateless scope is read when it is used, not before.

    So it is outside of such a scope, where `variable.value` is a `tf.Variable`: a value that an
    optimizer keeps in a Python variable changes with the next assignment.
    """
    read = CommonVariable.value.fget
    value = property(lambda variable: _Reading(lambda: read(variable)))
    with keras_layers.replaced(CommonVariable, value=value):
        yield


@contextlib.contextmanager
def _differentiable_at_zero():
    """While open, the functions of `keras.ops` that optimizers use have finite derivatives."""
    stock_root, stock_power, stock_norm = keras_numpy.sqrt, keras_numpy.power, keras_linalg.norm

    def square_root(x):
        x = keras_backend.convert_to_tensor(x)
        return _square_root(x) if tf.as_dtype(x.dtype).is_floating else stock_root(x)

    def power(x1, x2):
        x1, x2 = keras_backend.convert_to_tensor(x1), keras_backend.convert_to_tensor(x2)
        same = x1.dtype == x2.dtype and tf.as_dtype(x1.dtype).is_floating
        return _power(x1, x2) if same else stock_power(x1, x2)

    def norm(x, ord=None, axis=None, keepdims=False):
        zero = tf.reduce_all(tf.equal(x, 0), axis, keepdims=True)
        length = stock_norm(tf.where(zero, tf.ones_like(x), x), ord, axis, keepdims)
        return tf.where(tf.reshape(zero, tf.shape(length)), tf.zeros_like(length), length)

    with (
        keras_layers.replaced(keras_numpy, sqrt=square_root, power=power),
        keras_layers.replaced(keras_linalg, norm=norm),
    ):
        yield


def _selected(predicate, if_true, if_false):
    """`keras.ops.cond` of assignments in a stateless scope: both are made, one is selected.

    In the branch of a condition of TensorFlow's the new values would be lost, and no forward mode
    passes it.
    """
    outer, ends = get_stateless_scope(), []
    for branch in (if_true, if_false):
        with keras.StatelessScope() as inner:
            inner.state_mapping.update(outer.state_mapping)
            branch()
        ends.append(inner.state_mapping)
    for key, one in ends[0].items():
        other = ends[1][key]
        if one is not other:
            outer.state_mapping[key] = tf.where(predicate, one, other)


def apply_purely(optimizer, state, gradients):
    """`value(variable)` after `apply` of an optimizer with `PureMixin` on `(variable, tensor)`s.

    The state holds every variable that `apply` may assign.
    """
    with (
        _differentiable_at_zero(),
        _read_when_used(),
        keras_layers.replaced(keras_core, cond=_selected),
        keras.StatelessScope(state) as scope,
    ):
        optimizer.apply(gradients)
    return scope.get_current_value


def steps_taken(optimizer):
    """How many batches an optimizer was applied to; a Keras variable.

    `iterations` counts updates, of which `gradient_accumulation_steps` make fewer.
    """
    return optimizer._iterations


def averages_of(optimizer):
    """The variables that hold the averages of a built optimizer's weights (`use_ema`), or None."""
    return optimizer._model_variables_moving_average if optimizer.use_ema else None


def variable_key(optimizer, variable):
    """The key by which an optimizer knows a variable."""
    return optimizer._var_key(variable)
