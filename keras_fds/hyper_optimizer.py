"""The Keras optimizer that wraps another one and owns its learned schedules."""

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _stateless
from keras_fds.hyperparameters import Hyperparameter
from keras_fds.outer import SignDescent
from keras_fds.schedules import BucketedSchedule


@keras.saving.register_keras_serializable("keras_fds")
class HyperOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer whose hyperparameters follow learned, bucketed schedules.

    Compile a model with it, learn the schedules with `keras_fds.fit`, then train with stock
    `model.fit`, which stretches them to its own horizon. It saves and loads with the model.

    Args:
        optimizer: The `keras.optimizers.Optimizer` to wrap.
        hyperparameters: List of `keras_fds.Hyperparameter`, names all different.
        outer: The outer update rule. Defaults to `keras_fds.outer.SignDescent()`.
        tangent_clipvalue: When set, the gradient's tangents (the products H·Z of the paper)
            are clipped elementwise to ±`tangent_clipvalue`; the hypergradients are then no
            longer exact. Defaults to `None`. (The gradient itself is clipped by the wrapped
            optimizer's `clipvalue`.)
        name: Defaults to `"hyper_optimizer"`.

    Raises:
        ValueError: When a hyperparameter is unknown to the wrapped optimizer or named twice,
            or the wrapped optimizer uses something that cannot be differentiated through.

    Example:

    >>> optimizer = keras_fds.HyperOptimizer(
    ...     keras_fds.optimizers.SGD(),
    ...     hyperparameters=[
    ...         keras_fds.Hyperparameter("learning_rate", num_buckets=7, step_size=0.1),
    ...         keras_fds.Hyperparameter("momentum", step_size=0.1),
    ...     ],
    ... )
    >>> model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")

    Reference: Micaelli & Storkey (2021).
    """

    def __init__(self, optimizer, hyperparameters, outer=None, tangent_clipvalue=None, name=None):
        super().__init__(learning_rate=0.0, name=name or "hyper_optimizer")
        self.optimizer = keras.optimizers.get(optimizer)
        if not isinstance(hyperparameters, (list, tuple)):
            raise ValueError(
                "`hyperparameters` must be a list of keras_fds.Hyperparameter. "
                f"Received: hyperparameters={hyperparameters!r}"
            )
        self.hyperparameters = list(hyperparameters)
        self.outer = SignDescent() if outer is None else outer
        self.tangent_clipvalue = tangent_clipvalue
        self._check_arguments()
        step_sizes = [np.full(h.num_buckets, h.step_size) for h in self.hyperparameters]
        initial = [h.initial_values for h in self.hyperparameters]
        state = self.outer.initial_state(_concatenated(initial), _concatenated(step_sizes))
        state["hypergradients"] = np.full_like(state["values"], np.nan)
        state["loss"] = np.array(np.nan)
        self._outer_state = {}
        for key in sorted(state):
            variable = self.add_variable(state[key].shape, dtype="float64", name=key)
            variable.assign(state[key])
            self._outer_state[key] = variable
        # The schedules' horizon in inner steps, and the iteration at which it began.
        self._horizon = self.add_variable((), dtype="int64", name="horizon")
        self._horizon.assign(1)
        self._first_iteration = self.add_variable((), dtype="int64", name="first_iteration")

    def _check_arguments(self):
        optimizer = self.optimizer
        if isinstance(optimizer, (HyperOptimizer, keras.optimizers.LossScaleOptimizer)):
            raise ValueError(
                "`optimizer` must be an optimizer that updates weights itself, such as "
                "keras_fds.optimizers.SGD(), keras.optimizers.SGD() or keras.optimizers.Adam(). "
                f"Received: optimizer={optimizer}"
            )
        known = _stateless.numeric_attributes(optimizer)
        for hyperparameter in self.hyperparameters:
            if not isinstance(hyperparameter, Hyperparameter):
                raise ValueError(
                    "`hyperparameters` must be a list of keras_fds.Hyperparameter. "
                    f"Received: {hyperparameter!r}"
                )
            if hyperparameter.name not in known:
                raise ValueError(
                    f"{type(optimizer).__name__} has no hyperparameter {hyperparameter.name!r} "
                    f"that can be learned; it has {', '.join(sorted(known))}."
                )
        names = self.names
        if len(set(names)) < len(names):
            raise ValueError(f"A hyperparameter is named twice. Received: {names}")
        if "learning_rate" in names and _stateless.has_learning_rate_schedule(optimizer):
            raise ValueError(
                "The wrapped optimizer's `learning_rate` is a schedule already; pass a float "
                "(the learned schedule replaces it), or do not learn 'learning_rate'."
            )
        for argument in ("gradient_accumulation_steps", "use_ema", "loss_scale_factor"):
            if getattr(optimizer, argument, None):
                raise ValueError(
                    f"HyperOptimizer does not support `{argument}` of the wrapped optimizer. "
                    f"Received: {argument}={getattr(optimizer, argument)!r}"
                )
        clip = self.tangent_clipvalue
        if not hasattr(self.outer, "initial_state"):
            raise ValueError(
                "`outer` must be an outer update rule such as keras_fds.outer.SignDescent(). "
                f"Received: outer={self.outer!r}"
            )
        if clip is not None and not (isinstance(clip, (int, float)) and clip > 0):
            raise ValueError(f"`tangent_clipvalue` must be None or positive. Received: {clip!r}")

    # ------------------------------------------------------------------- learned values
    @property
    def names(self):
        """The names of the learned hyperparameters, in order."""
        return [hyperparameter.name for hyperparameter in self.hyperparameters]

    @property
    def horizon(self):
        """Inner steps over which the schedules stretch now. `fit` sets it; so may you."""
        return int(self._horizon.numpy())

    @horizon.setter
    def horizon(self, value):
        self._horizon.assign(value)
        self._first_iteration.assign(self.iterations)

    @property
    def schedules(self):
        """`{name: BucketedSchedule}` over the present horizon. Settable from the same form."""
        values = self._by_name(self.outer_state["values"])
        return {name: BucketedSchedule(values[name], self.horizon) for name in values}

    @schedules.setter
    def schedules(self, schedules):
        pieces = []
        for hyperparameter in self.hyperparameters:
            schedule = schedules.get(hyperparameter.name)
            if schedule is None or schedule.num_buckets != hyperparameter.num_buckets:
                raise ValueError(
                    f"The schedules must hold {hyperparameter.num_buckets} bucket(s) of "
                    f"{hyperparameter.name!r}. Received: {schedules}"
                )
            pieces.append(schedule.values)
        self._outer_state["values"].assign(_concatenated(pieces))

    @property
    def hypergradients(self):
        """`{name: float64 [num_buckets]}` of the last outer step; NaN before the first."""
        return self._by_name(self.outer_state["hypergradients"])

    @property
    def step_sizes(self):
        """`{name: float64 [num_buckets]}`, the outer rule's present step sizes."""
        return self._by_name(self.outer_state["step_sizes"])

    @property
    def outer_state(self):
        """The outer rule's whole state, a dictionary of float64 arrays."""
        return {key: variable.numpy() for key, variable in self._outer_state.items()}

    @outer_state.setter
    def outer_state(self, state):
        for key, value in state.items():
            self._outer_state[key].assign(value)

    def record(self, hypergradients, loss):
        """Keeps what an outer step measured, for the next `update_schedules`.

        Args:
            hypergradients: Float64 `[total_buckets]`.
            loss: Validation loss; not finite when the inner loop broke down.
        """
        loss = np.inf if np.isnan(loss) else loss
        self.outer_state = {"hypergradients": hypergradients, "loss": loss}

    def update_schedules(self):
        """Moves the bucket values by what was recorded last. Nothing recorded, nothing moves."""
        state = self.outer_state
        hypergradients, loss = state.pop("hypergradients"), state.pop("loss")
        if not np.isnan(loss):
            self.outer_state = self.outer.update(state, hypergradients, float(loss), *self.ranges)
            self.outer_state = {"loss": np.nan}

    @property
    def converged(self):
        """Whether the outer rule's step sizes have become negligible."""
        return self.outer.converged(self.outer_state, *self.ranges)

    @property
    def ranges(self):
        """Smallest and largest values allowed, two float64 `[total_buckets]`."""
        buckets = [h.num_buckets for h in self.hyperparameters]
        return tuple(
            np.repeat([getattr(h, end) for h in self.hyperparameters], buckets)
            for end in ("min_value", "max_value")
        )

    def _by_name(self, vector):
        ends = np.cumsum([h.num_buckets for h in self.hyperparameters])
        return dict(zip(self.names, np.split(vector, ends[:-1]))) if self.names else {}

    def buckets_at(self, inner_step, horizon):
        """`{name: position}` in the vector of all buckets; arguments are int64 tensors."""
        offset, positions = 0, {}
        for hyperparameter in self.hyperparameters:
            last = hyperparameter.num_buckets - 1
            bucket = hyperparameter.bucket(inner_step, horizon)
            positions[hyperparameter.name] = offset + tf.clip_by_value(bucket, 0, last)
            offset += hyperparameter.num_buckets
        return positions

    def values_at(self, inner_step, horizon, dtype):
        """`{name: scalar tensor}` at an inner step; both arguments int64 tensors."""
        values = tf.cast(self._outer_state["values"].value, dtype)
        positions = self.buckets_at(inner_step, horizon)
        return {name: values[position] for name, position in positions.items()}

    # ------------------------------------------------------------ the Keras optimizer's part
    def build(self, variables):
        if self.built:
            return
        _stateless.build_optimizer(self.optimizer, self.names, variables)
        super().build(variables)

    def reset_slots(self):
        """Puts the wrapped optimizer's slots and its iteration count back to their start."""
        fresh = _stateless.fresh_slots(self.optimizer, self.names, self._trainable_variables)
        for variable, value in zip(self.optimizer.variables, fresh):
            variable.assign(value)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(list(trainable_variables))
        elapsed = self.iterations - self._first_iteration
        dtype = self._trainable_variables[0].dtype
        values = self.values_at(tf.cast(elapsed, "int64"), self._horizon.value, dtype)
        _stateless.with_hyperparameters(self.optimizer, values).apply(grads, trainable_variables)

    @property
    def variables(self):
        return self._variables + self.optimizer.variables

    @property
    def iterations(self):
        return self.optimizer.iterations

    @property
    def learning_rate(self):
        if "learning_rate" not in self.names:
            return self.optimizer.learning_rate
        elapsed = tf.cast(self.iterations - self._first_iteration, "int64")
        return self.values_at(elapsed, self._horizon.value, "float32")["learning_rate"]

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        if "learning_rate" in self.names:
            raise TypeError(
                "The learning rate of this optimizer is a learned schedule, hence not settable. "
                "Set `optimizer.schedules`, or do not learn 'learning_rate'."
            )
        self.optimizer.learning_rate = learning_rate

    def finalize_variable_values(self, var_list):
        self.optimizer.finalize_variable_values(var_list)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "optimizer": serialize(self.optimizer),
            "hyperparameters": [serialize(h) for h in self.hyperparameters],
            "outer": serialize(self.outer),
            "tangent_clipvalue": self.tangent_clipvalue,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(value):
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        config = dict(config)
        config["optimizer"] = deserialize(config["optimizer"])
        config["hyperparameters"] = [deserialize(h) for h in config["hyperparameters"]]
        config["outer"] = deserialize(config["outer"])
        return cls(**config)


def _concatenated(pieces):
    return np.concatenate([np.zeros(0), *pieces])


class AnnounceHorizon(keras.callbacks.Callback):
    """Stretches the learned schedules to the horizon of a stock `model.fit`."""

    def on_train_begin(self, logs=None):
        self._announced = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._announced:
            return
        self._announced = True
        steps, optimizer = self.params.get("steps"), self.model.optimizer
        if steps:
            optimizer.horizon = steps * self.params["epochs"]
            # A run resumed at a later epoch is that far along its horizon.
            optimizer._first_iteration.assign_sub(epoch * steps)
        else:
            tf.get_logger().warning(
                "The number of batches an epoch is not known, so the learned schedules keep their "
                f"horizon of {optimizer.horizon} steps. Pass `steps_per_epoch` to stretch them."
            )


def _set_model(callback_list, model):
    """`keras.callbacks.CallbackList.set_model`, which also tells a HyperOptimizer its horizon.

    Keras tells an optimizer neither its model nor the length of its training; the callback
    list of a `fit` knows both.
    """
    optimizer = getattr(model, "optimizer", None)
    announced = any(isinstance(c, AnnounceHorizon) for c in callback_list.callbacks)
    if isinstance(optimizer, HyperOptimizer) and not announced:
        callback_list.callbacks.append(AnnounceHorizon())
    _stock_set_model(callback_list, model)


_stock_set_model = keras.callbacks.CallbackList.set_model
keras.callbacks.CallbackList.set_model = _set_model
