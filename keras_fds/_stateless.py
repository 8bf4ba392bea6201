"""Pure functions out of a compiled Keras model and a Keras optimizer.

Tensors go in, tensors come out, and no variable is assigned, so the functions can be
differentiated through.
"""

import warnings

import keras
import tensorflow as tf

from keras_fds import _keras, _scalars


class StatelessModel:
    """A compiled, built Keras model as pure functions of its state.

    The state that a training step changes is split in `weights` (trainable), `statistics`
    (other floating-point variables that training updates, such as moving averages) and
    `counters` (all that carries no tangent, such as random seeds).

    Args:
        model: A compiled and built `keras.Model`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        names: The numbers of the model and its loss that are learned, see `_scalars.places`.
    """

    def __init__(self, model, batch, names=()):
        self.model = model
        self.places = {name: _scalars.places(model, name) for name in names}
        self._trainable = list(model.trainable_variables)
        self._non_trainable = list(model.non_trainable_variables)
        self._updated = updated = self._updated_positions(batch)
        floating = [i for i in updated if tf.as_dtype(self._non_trainable[i].dtype).is_floating]
        self._statistics_positions = floating
        self._counter_positions = [i for i in updated if i not in floating]
        self.weights = [variable.value for variable in self._trainable]
        self.statistics = [self._non_trainable[i].value for i in floating]
        self.counters = [self._non_trainable[i].value for i in self._counter_positions]

    def _updated_positions(self, batch):
        """Positions of the non-trainable variables that a training step assigns."""
        positions = []

        def trace(batch):
            before = [tf.convert_to_tensor(v) for v in self._non_trainable]
            _, after, _ = self._call([v.value for v in self._trainable], before, batch, True)
            positions.extend(i for i, (a, b) in enumerate(zip(before, after)) if a is not b)

        traced = tf.function(trace, autograph=False).get_concrete_function(batch)
        _tell_of_unrepeatable(self.model, traced.graph.get_operations())
        return positions

    def _merged(self, statistics, counters):
        merged = [variable.value for variable in self._non_trainable]
        for positions, values in (
            (self._statistics_positions, statistics),
            (self._counter_positions, counters),
        ):
            for position, value in zip(positions, values):
                merged[position] = value
        return merged

    def _state(self, weights, non_trainable):
        return [*zip(self._trainable, weights), *zip(self._non_trainable, non_trainable)]

    def _call(self, weights, non_trainable, batch, training):
        """`(outputs, new_non_trainable, penalties)`."""
        state = self._state(weights, non_trainable)
        with _keras.twice_differentiable():
            outputs, value, penalties = _keras.call_model(self.model, state, batch[0], training)
        return outputs, [value(variable) for variable in self._non_trainable], penalties

    def _compiled_loss(self, weights, non_trainable, batch, outputs, penalties, training):
        state = self._state(weights, non_trainable)
        return _keras.compiled_loss(self.model, state, batch, outputs, penalties, training)

    def gradients(self, weights, statistics, counters, hyperparameters, batch):
        """The gradient stage of a training step.

        Args:
            weights, statistics, counters: Lists of tensors, as the attributes of that name.
            hyperparameters: `{name: scalar tensor}` for the names given to the constructor.
            batch: `(x, y, sample_weight)`.

        Returns:
            `((gradients, statistics), (loss, outputs, counters))`, the new values. Weights
            that the loss does not depend on are left out of `gradients`; `connected` tells
            which ones are in.
        """
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            _scalars.substituted(self.places, hyperparameters) as scalars,
        ):
            tape.watch(weights)
            merged = self._merged(statistics, counters)
            outputs, new, penalties = self._call(weights, merged, batch, training=True)
            loss = self._compiled_loss(weights, new, batch, outputs, penalties, training=True)
        _scalars.check_used(scalars)
        gradients = tape.gradient(loss, weights)
        self.connected = [gradient is not None for gradient in gradients]
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        if not gradients:
            raise ValueError(f"The loss of {self.model.name!r} depends on no trainable weight.")
        new_statistics = [new[i] for i in self._statistics_positions]
        new_counters = [new[i] for i in self._counter_positions]
        return (gradients, new_statistics), (loss, outputs, new_counters)

    def validation_loss(self, weights, statistics, counters, batch, training=False):
        """`(loss, outputs, counters)`: the compiled loss without regularisation penalties.

        Learned numbers of the model and its loss have the values they were compiled with: what
        is minimised does not change while it is minimised.
        """
        merged = self._merged(statistics, counters)
        outputs, new, _ = self._call(weights, merged, batch, training=training)
        nothing = [tf.zeros((), keras.config.floatx())]
        loss = self._compiled_loss(weights, new, batch, outputs, nothing, training)
        return loss, outputs, [new[i] for i in self._counter_positions]

    def update_metrics(self, batch, loss, outputs):
        """Adds a batch to the model's loss tracker and compiled metrics."""
        _keras.update_metrics(self.model, batch, loss, outputs)

    def reinitialize(self, twin):
        """Takes over from another model of this architecture all that training changes.

        Frozen weights, adapted normalisations and vocabularies stay as they are.
        """
        for mine, other in (
            (self._trainable, twin.trainable_variables),
            (self._non_trainable, twin.non_trainable_variables),
        ):
            for position, (variable, value) in enumerate(zip(mine, other)):
                if mine is self._trainable or position in self._updated:
                    variable.assign(value)


_PYTHON = ("EagerPyFunc", "PyFunc", "PyFuncStateless")
_RANDOM = ("RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal")
_RANDOM += ("RandomShuffle", "RandomGamma", "RandomPoissonV2", "Multinomial")


def _tell_of_unrepeatable(model, operations):
    """Raises for Python code in a training step, warns of random numbers drawn only once."""
    for operation in operations:
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
        scalars: `{name: TensorScalar}` that replace the optimizer's own numbers.
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
            factors.setdefault(_keras.variable_key(optimizer, variable), []).append(scalar)

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
    return {name: _scalars.TensorScalar(value, name) for name, value in hyperparameters.items()}


def with_hyperparameters(optimizer, hyperparameters, multipliers=()):
    """A view of a Keras optimizer that shares its variables and has other hyperparameters.

    Args:
        hyperparameters: `{name: scalar tensor}`.
        multipliers: `(variables, scalar tensor)` pairs, factors on their learning rate.
    """
    multipliers = [(v, _scalars.TensorScalar(factor)) for v, factor in multipliers]
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
        self._class = type(type(optimizer).__name__, (type(optimizer), _keras.PureMixin), {})

    def update(self, weights, slots, counters, hyperparameters, gradients, connected):
        """The update stage of a training step: `((weights, slots), counters)`, the new values.

        Args:
            weights: List of tensors.
            slots, counters: Lists of tensors, as `self.slots` and `self.counters`.
            hyperparameters: `{name: scalar tensor}` that replace the optimizer's own.
            gradients: List of tensors, one for each weight that `connected` marks.
            connected: List of bools, one a weight.
        """
        optimizer = self.optimizer
        scalars = _scalars_of(hyperparameters)
        own = {name: scalar for name, scalar in scalars.items() if name not in self.multiplied}
        multipliers = [(v, scalars[name]) for name, v in self.multiplied.items()]
        view = _view(self._class, optimizer, own, multipliers)
        keys = {id(v): _keras.variable_key(optimizer, v) for v in view._trainable_variables}
        vars(view)["_var_key"] = lambda variable: keys[id(variable)]
        remaining_gradients, remaining_slots, remaining_counters = map(
            iter, (gradients, slots, counters)
        )
        values = [next(remaining_slots if f else remaining_counters) for f in self._floating]
        gradients = [next(remaining_gradients) if c else None for c in connected]
        weights, values = _keras.apply_purely(view, values, gradients, weights)
        _scalars.check_used(scalars)
        slots = [value for value, is_float in zip(values, self._floating) if is_float]
        counters = [value for value, is_float in zip(values, self._floating) if not is_float]
        return (weights, slots), counters


def fresh_slots(optimizer, names, trainable_variables):
    """Start values of all variables of a Keras optimizer, as a list of arrays."""
    twin = type(optimizer).from_config(_keras.config_of(optimizer))
    build_optimizer(twin, names, trainable_variables)
    return [variable.numpy() for variable in twin.variables]
