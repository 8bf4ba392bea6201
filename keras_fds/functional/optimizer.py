"""A Keras optimizer as a pure function of its slots, with learned numbers in place of its own."""

import tensorflow as tf

from keras_fds.functional.learned_numbers import LearnedScalar, check_used
from keras_fds.internals import keras_optimizers


# --------------------------------------------------------------------------------- the optimizer
def _attributes(scalars):
    attributes = dict(scalars)
    if "learning_rate" in attributes:
        rate = attributes.pop("learning_rate")
        attributes["_learning_rate"] = lambda: rate.tensor
    return attributes


def _view(kind, optimizer, scalars, multipliers=()):
    """Another optimizer of a class `kind` that shares an optimizer's variables.

    Args:
        scalars: `{name: LearnedScalar}` that replace the optimizer's own numbers.
        multipliers: `(variables, scalar)` pairs: factors on the learning rate of some variables.
    """
    view = object.__new__(kind)
    vars(view).update(vars(optimizer))
    vars(view).update(_attributes(scalars))
    if not multipliers:
        return view
    factors = {}
    for variables, scalar in multipliers:
        for variable in variables:
            factors.setdefault(keras_optimizers.variable_key(optimizer, variable), []).append(
                scalar
            )

    def rate_of(variable, learning_rate):
        rate = tf.convert_to_tensor(learning_rate)
        for scalar in factors.get(view._var_key(variable), ()):
            rate = rate * tf.cast(scalar.tensor, rate.dtype)
        return rate

    update_step, apply_weight_decay = view.update_step, view._apply_weight_decay
    stock_rate = view._learning_rate

    def update_step_of_one(gradient, variable, learning_rate):
        return update_step(gradient, variable, rate_of(variable, learning_rate))

    def apply_weight_decay_one_by_one(variables):
        rate = view.learning_rate
        for variable in variables:
            vars(view)["_learning_rate"] = lambda v=variable: rate_of(v, rate)
            apply_weight_decay([variable])
        vars(view)["_learning_rate"] = stock_rate

    vars(view).update(
        update_step=update_step_of_one, _apply_weight_decay=apply_weight_decay_one_by_one
    )
    return view


def _scalars_of(hyperparameters):
    return {name: LearnedScalar(value, name) for name, value in hyperparameters.items()}


def with_hyperparameters(optimizer, hyperparameters, multipliers=()):
    """A view of a Keras optimizer that shares its variables and has other hyperparameters.

    Args:
        hyperparameters: `{name: scalar tensor}`.
        multipliers: `(variables, scalar tensor)` pairs, factors on their learning rate.
    """
    multipliers = [(v, LearnedScalar(factor)) for v, factor in multipliers]
    return _view(type(optimizer), optimizer, _scalars_of(hyperparameters), multipliers)


def build_optimizer(optimizer, names, variables):
    """Builds a Keras optimizer with every slot that learning `names` needs."""
    saved = dict(vars(optimizer))
    substitutes = _attributes(_scalars_of({name: tf.constant(1.0) for name in names}))
    vars(optimizer).update(substitutes)
    try:
        optimizer.build(variables)
    finally:
        vars(optimizer).update({name: saved[name] for name in substitutes})


class StatelessOptimizer:
    """A built Keras optimizer as a pure function.

    Its variables are split in `slots` (floating point) and `counters` (the rest).

    Args:
        optimizer: A built `keras.optimizers.Optimizer`.
        multiplied: `{name: variables}`: hyperparameters that are factors on learning rates.
    """

    def __init__(self, optimizer, multiplied=None):
        self.optimizer = optimizer
        self.multiplied = multiplied or {}
        variables = optimizer.variables
        floating = [tf.as_dtype(variable.dtype).is_floating for variable in variables]
        self._floating = floating
        self.slots = [v.value for v, is_float in zip(variables, floating) if is_float]
        self.counters = [v.value for v, is_float in zip(variables, floating) if not is_float]
        self._class = type(
            type(optimizer).__name__, (type(optimizer), keras_optimizers.PureMixin), {}
        )

    def update(self, weights, slots, counters, hyperparameters, gradients, connected):
        """The update stage of a training step: `((weights, slots), counters)`, the new values.

        Args:
            weights: List of tensors.
            slots, counters: Lists of tensors, as `self.slots` and `self.counters`.
            hyperparameters: `{name: scalar tensor}` that replace the optimizer's own.
            gradients: List of tensors, one for each weight that `connected` marks.
            connected: List of bools, one per weight.
        """
        optimizer = self.optimizer
        scalars = _scalars_of(hyperparameters)
        own = {name: scalar for name, scalar in scalars.items() if name not in self.multiplied}
        multipliers = [(v, scalars[name]) for name, v in self.multiplied.items()]
        view = _view(self._class, optimizer, own, multipliers)
        keys = {
            id(v): keras_optimizers.variable_key(optimizer, v) for v in view._trainable_variables
        }
        vars(view)["_var_key"] = lambda variable: keys[id(variable)]
        remaining_gradients, remaining_slots, remaining_counters = map(
            iter, (gradients, slots, counters)
        )
        values = [next(remaining_slots if f else remaining_counters) for f in self._floating]
        gradients = [next(remaining_gradients) if c else None for c in connected]
        weights, values = keras_optimizers.apply_purely(view, values, gradients, weights)
        check_used(scalars)
        slots = [value for value, is_float in zip(values, self._floating) if is_float]
        counters = [value for value, is_float in zip(values, self._floating) if not is_float]
        return (weights, slots), counters


def fresh_slots(optimizer, names, trainable_variables):
    """Start values of all variables of a Keras optimizer, as a list of arrays."""
    twin = type(optimizer).from_config(keras_optimizers.config_of(optimizer))
    build_optimizer(twin, names, trainable_variables)
    return [variable.numpy() for variable in twin.variables]
