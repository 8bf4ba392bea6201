"""The Keras optimizer that wraps another one and owns its learned schedules."""

import keras
import numpy as np
import tensorflow as tf

from keras_fds import _learnable, _pruning, _scalars, _stateless
from keras_fds._search import Search
from keras_fds.outer import Measurement, Ranges, TrustRegionDescent
from keras_fds.schedules import BucketedSchedule


@keras.saving.register_keras_serializable("keras_fds")
class HyperOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer whose hyperparameters follow learned, bucketed schedules.

    Compile a model with it, learn the schedules with `keras_fds.fit`, then train with stock
    `model.fit`, which stretches them to its own horizon. It saves and loads with the model.

    Args:
        optimizer: The `keras.optimizers.Optimizer` to wrap.
        hyperparameters: List of `keras_fds.Hyperparameter`, names all different.
        outer: The outer update rule. Defaults to `keras_fds.outer.TrustRegionDescent()`.
        tangent_clipvalue: When set, the gradient's tangents (the products H·Z of the paper)
            are clipped elementwise to ±`tangent_clipvalue`; the hypergradients are then no
            longer exact. Defaults to `None`. (The gradient itself is clipped by the wrapped
            optimizer's `clipvalue`.)
        tangents_per_pass: How many buckets' tangents are pushed through a training step at once;
            fewer need less memory and more time. Defaults to `None`, all.
        pruning: `"alternate"` or `"truncate"`: in forward mode, tangents stay as they are at a
            part of the steps, spread evenly or the first ones of every bucket. Cheaper, and no
            longer exact. Defaults to `None`.
        pruning_ratio: That part, in (0, 1). Defaults to `0.5`.
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

    def __init__(
        self,
        optimizer,
        hyperparameters,
        outer=None,
        tangent_clipvalue=None,
        tangents_per_pass=None,
        pruning=None,
        pruning_ratio=0.5,
        name=None,
    ):
        super().__init__(learning_rate=0.0, name=name or "hyper_optimizer")
        self.optimizer = keras.optimizers.get(optimizer)
        if not isinstance(hyperparameters, (list, tuple)):
            raise ValueError(
                "`hyperparameters` must be a list of keras_fds.Hyperparameter. "
                f"Received: hyperparameters={hyperparameters!r}"
            )
        self.hyperparameters = list(hyperparameters)
        self.outer = TrustRegionDescent() if outer is None else outer
        self.tangent_clipvalue = tangent_clipvalue
        self.tangents_per_pass = tangents_per_pass
        self.pruning = _pruning.Pruning(pruning, pruning_ratio)
        self.pruning_ratio = pruning_ratio
        _learnable.check_arguments(self)
        initial = [h.coordinates(h.initial_values) for h in self.hyperparameters]
        state = self._first_outer_state(_concatenated(initial))
        self._outer_state = {}
        for key in sorted(state):
            variable = self.add_variable(state[key].shape, dtype="float64", name=key)
            variable.assign(state[key])
            self._outer_state[key] = variable
        # The schedules' horizon in inner steps, and the iteration at which it began.
        self._horizon = self.add_variable((), dtype="int64", name="schedule_horizon")
        self._horizon.assign(1)
        self._first_iteration = self.add_variable((), dtype="int64", name="first_iteration")
        self._multiplied = None
        # The search that `fit` runs, or ran last; it is saved while it is in progress.
        self.search, self.searching = None, False

    def _first_outer_state(self, coordinates):
        step_sizes = _concatenated(
            np.full(h.num_buckets, h.step_size) for h in self.hyperparameters
        )
        measured = {"hypergradients": np.full_like(coordinates, np.nan)}
        measured.update(loss=np.array(np.nan), loss_error=np.array(0.0))
        return {**self.outer.initial_state(coordinates, step_sizes), **measured}

    def restart(self):
        """Lets the outer rule begin anew, at the present schedules.

        `fit` does so unless it goes on with a search; what was recorded is forgotten.

        Example:

        >>> optimizer.schedules = keras_fds.load_schedules("schedules.json")
        >>> optimizer.restart()
        """
        self.outer_state = self._first_outer_state(self.outer_state["values"])

    # ------------------------------------------------------------------- learned values
    @property
    def names(self):
        """The names of the learned hyperparameters, in order."""
        return [hyperparameter.name for hyperparameter in self.hyperparameters]

    @property
    def horizon(self):
        """Inner steps over which the schedules stretch now, an int."""
        return int(self._horizon.numpy())

    def begin_schedules(self, horizon, elapsed=0):
        """Lets the schedules start over, stretched to a horizon.

        `keras_fds.fit` and `model.fit` do so whenever they are called; a training loop of your own
        calls it before its first step.

        Args:
            horizon: Training steps over which the schedules stretch, a positive int.
            elapsed: How many of them are done already. Defaults to `0`.

        Example:

        >>> optimizer.begin_schedules(horizon=steps_per_epoch * epochs)
        """
        self._horizon.assign(horizon)
        self._first_iteration.assign(self.iterations - elapsed)

    @property
    def schedules(self):
        """`{name: BucketedSchedule}` over the present horizon. Settable from the same form."""
        return {name: BucketedSchedule(v, self.horizon) for name, v in self._values().items()}

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
            pieces.append(hyperparameter.coordinates(schedule.values))
        self._outer_state["values"].assign(_concatenated(pieces))

    @property
    def hypergradients(self):
        """`{name: float64 [num_buckets]}` of the last outer step; NaN before the first.

        They are derivatives by the hyperparameters' coordinates on their scales.
        """
        return self._by_name(self.outer_state["hypergradients"])

    @property
    def step_sizes(self):
        """`{name: float64 [num_buckets]}`, the outer rule's present steps in coordinates."""
        return self._by_name(self.outer_state["step_sizes"])

    @property
    def outer_state(self):
        """The outer rule's whole state, a dictionary of float64 arrays, in coordinates."""
        return {key: variable.numpy() for key, variable in self._outer_state.items()}

    @outer_state.setter
    def outer_state(self, state):
        for key, value in state.items():
            self._outer_state[key].assign(value)

    def record(self, hypergradients, loss, loss_error=0.0):
        """Keeps what an outer step measured, for the next `update_schedules`.

        Args:
            hypergradients: Float64 `[total_buckets]`, by coordinates.
            loss: Validation loss; not finite when the inner loop broke down.
            loss_error: Its standard error; not finite where it is not known.
        """
        measured = {"loss": np.inf if np.isnan(loss) else loss}
        measured["loss_error"] = np.nan_to_num(loss_error, posinf=0.0)
        self.outer_state = {"hypergradients": hypergradients, **measured}

    def judge(self):
        """What was recorded last is to the search: `"best"`, `"accepted"` or `"rejected"`."""
        return self.outer.judge(*self._measured())

    def update_schedules(self):
        """Moves the bucket values by what was recorded last. Nothing recorded, nothing moves."""
        if not np.isnan(self._outer_state["loss"].numpy()):
            self.outer_state = {**self.outer.update(*self._measured()), "loss": np.nan}

    def _measured(self):
        """What the outer rule judges and updates by: its state, a `Measurement`, the `Ranges`."""
        state, horizon = self.outer_state, self.horizon
        lengths = _concatenated(h.bucket_lengths(horizon) for h in self.hyperparameters)
        measured = {key: state.pop(key) for key in ("hypergradients", "loss", "loss_error")}
        return state, Measurement(**measured, lengths=lengths, horizon=horizon), self.ranges

    @property
    def converged(self):
        """Whether the outer rule's step sizes have become negligible beside the values."""
        state = self.outer_state
        coordinates = state["values"]
        state["values"] = _concatenated(self._values().values())
        moved = self._values(coordinates + state["step_sizes"])
        state["step_sizes"] = np.abs(_concatenated(moved.values()) - state["values"])
        ends = [_concatenated(self._values(end).values()) for end in self.ranges[:2]]
        return self.outer.converged(state, self.ranges._replace(minimum=ends[0], maximum=ends[1]))

    @property
    def ranges(self):
        """The `keras_fds.outer.Ranges` of the coordinates."""
        with np.errstate(divide="ignore"):
            ends = [
                h.coordinates(np.array([h.min_value, h.max_value])) for h in self.hyperparameters
            ]
        each = [
            (*end, h.scale == "linear", i, max(1.0, h.breadth * h.num_buckets))
            for i, (end, h) in enumerate(zip(ends, self.hyperparameters, strict=True))
        ]
        numbers = np.array([h.num_buckets for h in self.hyperparameters], "int64")
        columns = np.repeat(np.reshape(each, (-1, len(Ranges._fields))), numbers, axis=0).T
        return Ranges(*columns)._replace(linear=columns[2].astype(bool))

    def derivatives(self):
        """dλ/du of every value λ by its coordinate u, float64 `[total_buckets]`."""
        values = self._values()
        return _concatenated(h.derivatives(values[h.name]) for h in self.hyperparameters)

    def means_over_buckets(self, sums, horizon):
        """Hypergradients by coordinates from sums over buckets of derivatives by values.

        Args:
            sums: Float64 `[total_buckets]`.
            horizon: Number of inner steps.
        """
        lengths = _concatenated(self.pruning.kept_steps(h, horizon) for h in self.hyperparameters)
        return sums * self.derivatives() / lengths

    def per_step(self, derivatives):
        """`{name: float64 [horizon]}`, by coordinates; the argument is by values, and stacked."""
        values, steps = self._values(), np.arange(len(derivatives))
        return {
            h.name: of_steps * h.derivatives(values[h.name])[h.bucket(steps, len(steps))]
            for h, of_steps in zip(self.hyperparameters, derivatives.T)
        }

    def _values(self, coordinates=None):
        """`{name: float64 [num_buckets]}`: the values at coordinates, by default at present."""
        coordinates = self.outer_state["values"] if coordinates is None else coordinates
        pieces = self._by_name(coordinates)
        return {h.name: np.array(h.values(pieces[h.name])) for h in self.hyperparameters}

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
        coordinates = self._outer_state["values"].value
        positions = self.buckets_at(inner_step, horizon)
        return {
            h.name: tf.cast(h.values(coordinates[positions[h.name]]), dtype)
            for h in self.hyperparameters
        }

    def present_values(self, dtype):
        """`{name: scalar tensor}` at the optimizer's own iteration."""
        elapsed = tf.cast(self.iterations - self._first_iteration, "int64")
        return self.values_at(elapsed, self._horizon.value, dtype)

    # --------------------------------------------------------------- numbers of the model
    @property
    def model_names(self):
        """The learned numbers of the model and its loss, see `Hyperparameter`."""
        return [n for n in self.names if "." in n and not _scalars.is_multiplier(n)]

    def multiplied(self, model):
        """`{name: variables}` of the learned factors on the learning rates of layers."""
        names = [name for name in self.names if _scalars.is_multiplier(name)]
        self._multiplied = {name: _scalars.multiplied_variables(model, name) for name in names}
        return self._multiplied

    # ------------------------------------------------------------ the Keras optimizer's part
    def build(self, variables):
        if self.built:
            return
        _stateless.build_optimizer(self.optimizer, self._optimizer_names, variables)
        super().build(variables)

    @property
    def _optimizer_names(self):
        return [name for name in self.names if "." not in name]

    def reset_slots(self):
        """Puts the wrapped optimizer's slots and its iteration count back to their start."""
        names = self._optimizer_names
        fresh = _stateless.fresh_slots(self.optimizer, names, self._trainable_variables)
        for variable, value in zip(self.optimizer.variables, fresh):
            variable.assign(value)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(list(trainable_variables))
        if not self._trainable_variables:
            raise ValueError(
                "This optimizer was built for no weights, as Keras builds it when it loads a model "
                "from an HDF5 file. Call model.compile(optimizer=keras_fds.HyperOptimizer(...)) "
                "anew, or save models as '.keras'."
            )
        values = self.present_values(self._trainable_variables[0].dtype)
        if self._multiplied is None and any(map(_scalars.is_multiplier, self.names)):
            raise ValueError(
                "Factors on the learning rates of layers are known in `model.fit` and "
                "`keras_fds.fit` only: they tell the optimizer its model."
            )
        multipliers = [(v, values[name]) for name, v in (self._multiplied or {}).items()]
        own = {name: values[name] for name in self._optimizer_names}
        view = _stateless.with_hyperparameters(self.optimizer, own, multipliers)
        view.apply(grads, trainable_variables)

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
        return self.present_values("float32")["learning_rate"]

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        if "learning_rate" in self.names:
            raise TypeError(
                "The learning rate of this optimizer is a learned schedule, hence not settable. "
                "Set `optimizer.schedules`, or do not learn 'learning_rate'."
            )
        self.optimizer.learning_rate = learning_rate

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        self.optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights):
        """Assigns values to `variables`, in their order, as HDF5 files hold them.

        Keras builds an optimizer that it loads from such a file without slots: the rest is left.
        """
        for variable, value in zip(self.variables, weights):
            variable.assign(value)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for key, array in self.search.to_arrays().items() if self.searching else ():
            store[key] = array

    def load_own_variables(self, store):
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118, no mapping in Keras
        self.search = Search.taken_out_of(entries) or self.search
        super().load_own_variables(entries)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "optimizer": serialize(self.optimizer),
            "hyperparameters": [serialize(h) for h in self.hyperparameters],
            "outer": serialize(self.outer),
            "tangent_clipvalue": self.tangent_clipvalue,
            "tangents_per_pass": self.tangents_per_pass,
            "pruning": self.pruning.mode,
            "pruning_ratio": self.pruning_ratio,
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
