"""Pure functions out of a compiled Keras model and a Keras optimizer.

Tensors go in, tensors come out, and no variable is assigned, so the functions can be
differentiated through.
"""

import keras
import tensorflow as tf

from keras_fds import _keras, _scalars, _writes


class StatelessModel:
    """A compiled, built Keras model as pure functions of its state.

    The state that a training step changes is split in `weights` (trainable), `statistics`
    (other floating-point variables that training updates, such as moving averages) and
    `counters` (all that carries no tangent, such as random seeds and the state of metrics).
    Variables that a step assigns and that Keras does not count among the model's are part of it.

    Args:
        model: A compiled and built `keras.Model`.
        batch: The `tf.TensorSpec`s of a batch `(x, y, sample_weight)`.
        names: The numbers of the model and its loss that are learned, see `_scalars.places`.

    Attributes:
        outside: The variables of the state that are not in `model.variables`.
        evaluates_in_order: Whether an evaluation changes statistics, as stateful recurrent layers
            do, so that its batches depend on each other.

    Raises:
        ValueError: A step assigns what it cannot assign rightly.
    """

    def __init__(self, model, batch, names=()):
        self.model = model
        self.places = {name: _scalars.places(model, name) for name in names}
        self._trainable = list(model.trainable_variables)
        self._non_trainable = list(model.non_trainable_variables)
        written, written_in_evaluation = self._written(batch)
        known = {id(v) for v in (*self._trainable, *self._non_trainable)}
        self.outside = [v for key, v in written.items() if key not in known]
        self._non_trainable += self.outside
        metrics = {id(variable) for variable in model.metrics_variables}
        self._updated = [i for i, v in enumerate(self._non_trainable) if id(v) in written]
        carrying = [
            i
            for i in self._updated
            if tf.as_dtype(self._non_trainable[i].dtype).is_floating
            and id(self._non_trainable[i]) not in metrics
        ]
        self._statistics_positions = carrying
        self._counter_positions = [i for i in self._updated if i not in carrying]
        self.evaluates_in_order = any(
            id(self._non_trainable[i]) in written_in_evaluation for i in carrying
        )
        self.weights = [variable.value for variable in self._trainable]
        self.statistics = [self._non_trainable[i].value for i in carrying]
        self.counters = [self._non_trainable[i].value for i in self._counter_positions]
        of_metrics = [id(self._non_trainable[i]) in metrics for i in self._counter_positions]
        self._of_metrics = of_metrics

    def _written(self, batch):
        """`{id: variable}` that a training step assigns, or an evaluation; and of the latter."""
        written = [{}, {}]

        def trace(batch):
            for training, each in zip((True, False), written):
                values = [v.value for v in (*self._trainable, *self._non_trainable)]
                weights, others = values[: len(self._trainable)], values[len(self._trainable) :]
                called = self._call(weights, others, batch, training)
                losses = called.added + called.penalties
                loss = self._loss(weights, others, batch, called, losses, training)
                each.update({id(v): v for v in (*called.written, *loss.written)})

        traced = tf.function(trace, autograph=False).get_concrete_function(batch)
        _writes.check(self.model, traced.graph)
        for variable in self._trainable:
            if id(variable) in written[0]:
                raise ValueError(
                    f"A layer of {self.model.name!r} assigns its trainable weight "
                    f"{variable.path!r} while it trains, as SpectralNormalization does. What its "
                    "gradient then belongs to cannot be told from outside, so hypergradients are "
                    "not possible: leave the layer out, or freeze it."
                )
        return {**written[0], **written[1]}, written[1]

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

    def _call(self, weights, non_trainable, batch, training, tape=None):
        """The model's `_keras.Called`."""
        state = self._state(weights, non_trainable)
        with _keras.twice_differentiable():
            return _keras.call_model(self.model, state, batch[0], training, tape)

    def _loss(self, weights, non_trainable, batch, called, losses, training, tape=None):
        """The model's `_keras.Loss` after a call."""
        non_trainable = [
            v if called.value(variable) is None else called.value(variable)
            for variable, v in zip(self._non_trainable, non_trainable)
        ]
        state = self._state(weights, non_trainable)
        # What is assigned outside of the model's variables, too, when that is not known yet.
        state += [
            (v, called.value(v)) for v in called.written if all(v is not mine for mine, _ in state)
        ]
        if not losses and training and _keras.has_no_loss(self.model):
            raise ValueError(
                f"The model {self.model.name!r} is compiled without a loss, and none of its layers "
                "adds one. Pass `loss=` to compile()."
            )
        outputs = called.outputs
        return _keras.compiled_loss(self.model, state, batch, outputs, losses, training, tape)

    def _after(self, loss):
        """The new `(statistics, counters)`."""
        return [
            [loss.value(self._non_trainable[i]) for i in positions]
            for positions in (self._statistics_positions, self._counter_positions)
        ]

    def gradients(self, weights, statistics, counters, hyperparameters, batch):
        """The gradient stage of a training step.

        Args:
            weights, statistics, counters: Lists of tensors, as the attributes of that name.
            hyperparameters: `{name: scalar tensor}` for the names given to the constructor.
            batch: `(x, y, sample_weight)`.

        Returns:
            `((gradients, statistics), (loss, outputs, counters))`, the new values. Weights
            that the loss does not depend on are left out of `gradients`; `connected` tells
            which ones are in. The loss is a scalar, or one value an example with
            `reduction="none"`, whose gradients add up, as in Keras.
        """
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            _scalars.substituted(self.places, hyperparameters) as scalars,
        ):
            tape.watch(weights)
            merged = self._merged(statistics, counters)
            called = self._call(weights, merged, batch, True, tape)
            losses = called.added + called.penalties
            loss = self._loss(weights, merged, batch, called, losses, True, tape)
        _scalars.check_used(scalars)
        with _keras.explaining(f"model {self.model.name!r}"):
            gradients = tape.gradient(loss.value_of_loss, weights)
        self.connected = [gradient is not None for gradient in gradients]
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        if not gradients:
            raise ValueError(f"The loss of {self.model.name!r} depends on no trainable weight.")
        statistics, counters = self._after(loss)
        return (gradients, statistics), (loss.value_of_loss, called.outputs, counters)

    def validation_loss(self, weights, statistics, counters, batch, training=False):
        """`(loss, outputs, statistics, counters)`: what `model.evaluate` says without penalties.

        Regularizers, of weights and of activities, are left out; what layers add by `add_loss`
        counts. Learned numbers of the model and its loss have the values they were compiled with:
        what is minimised does not change while it is minimised.
        """
        merged = self._merged(statistics, counters)
        with _keras.without_activity_regularizers(self.model):
            called = self._call(weights, merged, batch, training=training)
        # A zero, where nothing is left to add, keeps Keras from adding the penalties itself.
        losses = called.added or [tf.zeros((), keras.config.floatx())] * bool(called.penalties)
        loss = self._loss(weights, merged, batch, called, losses, training)
        return loss.value_of_loss, called.outputs, *self._after(loss)

    def keep_metrics(self, counters):
        """Assigns the state of metrics among `counters`, lists of tensors."""
        for variable, value, is_metric in zip(self.counters, counters, self._of_metrics):
            if is_metric:
                variable.assign(value)

    def update_metrics(self, batch, loss, outputs):
        """Adds a batch to the model's loss tracker and compiled metrics."""
        _keras.update_metrics(self.model, batch, loss, outputs)

    def check_trainable(self):
        """Raises a `ValueError` when other weights are trainable now than at the beginning."""
        if [id(v) for v in self.model.trainable_variables] != [id(v) for v in self._trainable]:
            raise ValueError(
                f"Other weights of {self.model.name!r} are trainable now than when the search "
                "began. Freeze layers before `fit`, and compile the model with a new "
                "HyperOptimizer."
            )

    @property
    def trained(self):
        """The variables of the model that training changes: not frozen ones, nor vocabularies."""
        outside = {id(variable) for variable in self.outside}
        updated = (self._non_trainable[i] for i in self._updated)
        return [*self._trainable, *(v for v in updated if id(v) not in outside)]


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
