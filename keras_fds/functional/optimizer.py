"""A Keras optimizer as a pure function of its slots, with learned numbers in place of its own."""

import tensorflow as tf

from keras_fds.functional.learned_numbers import LearnedScalar, check_used
from keras_fds.internals import keras_optimizers


def _attributes(scalars):
    attributes = dict(scalars)
    if "learning_rate" in attributes:
        rate = attributes.pop("learning_rate")
        attributes["_learning_rate"] = lambda: rate.tensor
    return attributes


def _view(kind, optimizer, scalars, multipliers=()):
    """Another optimizer of a class `kind` that shares an optimizer's variables.

    The scalars, by name, replace its own numbers; `(variables, scalar)` pairs are factors on the
    learning rate of some variables.
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


def scalars_of(hyperparameters):
    """`{name: LearnedScalar}` of tensors by name."""
    return {name: LearnedScalar(value, name) for name, value in hyperparameters.items()}


def multipliers_of(multiplied, scalars):
    """`(variables, scalar)` pairs of `{name: groups of variables}` and `{name: LearnedScalar}`.

    A vector has a factor for every group.
    """
    found = []
    for name, groups in multiplied.items():
        scalar = scalars[name]
        for i, variables in enumerate(groups):
            factor = LearnedScalar(scalar.tensor[i], name) if scalar.ndim else scalar
            found.append((variables, factor))
    return found


def with_hyperparameters(optimizer, hyperparameters, multipliers=()):
    """A view of a Keras optimizer that shares its variables and has other hyperparameters.

    These are scalar tensors by name; `multipliers_of` makes factors on learning rates.
    """
    return _view(type(optimizer), optimizer, scalars_of(hyperparameters), multipliers)


def build_optimizer(optimizer, names, variables):
    """Builds a Keras optimizer with every slot that learning `names` needs."""
    saved = dict(vars(optimizer))
    substitutes = _attributes(scalars_of({name: tf.constant(1.0) for name in names}))
    vars(optimizer).update(substitutes)
    try:
        optimizer.build(variables)
    finally:
        vars(optimizer).update({name: saved[name] for name in substitutes})


class StatelessOptimizer:
    """A built Keras optimizer as a pure function.

    Its variables are split in `slots` (floating point) and `counters` (the rest). `multiplied` is
    `{name: groups of variables}`: hyperparameters that are factors on learning rates, see
    `multiplied_variables`.
    """

    def __init__(self, optimizer, multiplied=None):
        self.optimizer = optimizer
        self.multiplied = multiplied or {}
        self._slots = [v for v in optimizer.variables if tf.as_dtype(v.dtype).is_floating]
        self._counters = [v for v in optimizer.variables if not tf.as_dtype(v.dtype).is_floating]
        self.slots = [variable.value for variable in self._slots]
        self.counters = [variable.value for variable in self._counters]
        self._class = type(
            type(optimizer).__name__, (type(optimizer), keras_optimizers.PureMixin), {}
        )

    def update(
        self,
        weights,
        slots,
        counters,
        hyperparameters,
        gradients,
        slices,
        connected,
        is_last=False,
    ):
        """The update stage of a training step: `((weights, slots), counters)`, the new values.

        `connected` marks, by a bool each, the weights that have one of the `gradients`; see
        `StatelessModel.gradients`. Keras's optimizers count a row that is looked up twice by the
        squares of both gradients, not of their sum, so they get slices where stock Keras has them.
        With `use_ema` the weights become their averages in the last step, as at the end of
        `model.fit`.
        """
        optimizer = self.optimizer
        scalars = scalars_of(hyperparameters)
        own = {name: scalar for name, scalar in scalars.items() if name not in self.multiplied}
        multipliers = multipliers_of(self.multiplied, scalars)
        view = _view(self._class, optimizer, own, multipliers)
        trained = keras_optimizers.trained_variables(view)
        keys = {id(v): keras_optimizers.variable_key(optimizer, v) for v in trained}
        vars(view)["_var_key"] = lambda variable: keys[id(variable)]
        remaining = iter(zip(gradients, slices, strict=True))
        gradients = [
            _as_keras_has_it(weight, *next(remaining)) if is_connected else None
            for weight, is_connected in zip(weights, connected)
        ]
        groups = trained, self._slots, self._counters
        state = [pair for pairs in map(zip, groups, (weights, slots, counters)) for pair in pairs]
        value = keras_optimizers.apply_purely(view, state, gradients)
        check_used(scalars)
        weights, slots, counters = ([value(v) for v in group] for group in groups)
        averages = keras_optimizers.averages_of(optimizer)
        if averages is not None:
            ends = zip(weights, averages, strict=True)
            weights = [tf.where(is_last, value(average), weight) for weight, average in ends]
        return (weights, slots), counters


def _as_keras_has_it(weight, gradient, rows):
    return gradient if rows is None else tf.IndexedSlices(gradient, rows, tf.shape(weight))


def steps_taken(optimizer):
    """How many batches a Keras optimizer was applied to; a Keras variable."""
    return keras_optimizers.steps_taken(optimizer)


def replace_variable(optimizer, old, new):
    """Puts another variable in the place of one of a Keras optimizer's own."""
    keras_optimizers.replace_variable(optimizer, old, new)


def fresh_slots(optimizer, names, trainable_variables):
    """Start values of all variables of a Keras optimizer, as a list of arrays."""
    twin = type(optimizer).from_config(keras_optimizers.config_of(optimizer))
    build_optimizer(twin, names, trainable_variables)
    return [variable.numpy() for variable in twin.variables]
