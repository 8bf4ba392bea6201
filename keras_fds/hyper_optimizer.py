"""The Keras optimizer that wraps another one and owns its learned schedules."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_fds.functional import (
    EXAMPLE_WEIGHTS,
    announce_horizons,
    build_optimizer,
    check_hyperparameter,
    check_optimizer,
    fresh_slots,
    is_multiplier,
    multiplied_variables,
    multipliers_of,
    replace_variable,
    scalars_of,
    steps_taken,
    with_hyperparameters,
)
from keras_fds.hyperparameters import Buckets, Hyperparameter
from keras_fds.numbers import number
from keras_fds.outer import BayesianOptimization, Rule
from keras_fds.schedules import BucketedSchedule


@keras.saving.register_keras_serializable("keras_fds")
class HyperOptimizer(keras.optimizers.Optimizer):
    """Wraps a Keras optimizer whose hyperparameters follow learned, bucketed schedules.

    Compile a model with it, learn the schedules with `keras_fds.fit`, then train with stock
    `model.fit`, which stretches them to its own horizon. It saves and loads with the model.

    Args:
        optimizer: The `keras.optimizers.Optimizer` to wrap.
        hyperparameters: List of `keras_fds.Hyperparameter` with different names.
        outer: The outer update rule. Defaults to `keras_fds.outer.BayesianOptimization()`.
        tangent_clipvalue, tangents_per_pass: Deprecated; see `keras_fds.differentiation.Forward`.
        name: Defaults to `"hyper_optimizer"`.

    Raises:
        ValueError: When a hyperparameter is named twice or cannot be learned with the wrapped
            optimizer, or the optimizer uses something that cannot be differentiated.

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
        optimizer: keras.optimizers.Optimizer,
        hyperparameters: Sequence[Hyperparameter],
        outer: Rule | None = None,
        tangent_clipvalue: float | None = None,
        tangents_per_pass: int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate=0.0, name=name or "hyper_optimizer")
        announce_horizons()
        self.optimizer = keras.optimizers.get(optimizer)
        self.outer = BayesianOptimization() if outer is None else outer
        self.hyperparameters = _checked(self.optimizer, hyperparameters)
        _check_outer(self.outer)
        self.tangent_clipvalue = _deprecated("tangent_clipvalue", tangent_clipvalue)
        self.tangents_per_pass = _deprecated("tangents_per_pass", tangents_per_pass)
        self.buckets = Buckets(self.hyperparameters)
        self._coordinates = self.add_variable(
            (self.buckets.size,), dtype="float64", name="coordinates"
        )
        self._coordinates.assign(self.buckets.initial_coordinates())
        # The schedules' horizon in inner steps, and the iteration at which it began.
        self._horizon = self.add_variable((), dtype="int64", name="schedule_horizon")
        self._horizon.assign(1)
        self._first_iteration = self.add_variable((), dtype="int64", name="first_iteration")
        self._multiplied: dict[str, list[keras.Variable]] | None = None
        # The search that `fit` runs, or ran last. Keras saves a running search with the optimizer,
        # as arrays; `loaded_search` holds such arrays for the next `fit`.
        self.search = None
        self.searching = False
        self.loaded_search = None
        self.moves_online = False  # Whether `fit_online` runs.

    # ------------------------------------------------------------------- learned values
    @property
    def names(self) -> list[str]:
        """The names of the learned hyperparameters, in order."""
        return self.buckets.names

    @property
    def horizon(self) -> int:
        """Inner steps over which the schedules stretch now, an int."""
        return int(self._horizon.numpy())

    def begin_schedules(self, horizon: int, elapsed: int = 0) -> None:
        """Starts the schedules over, stretched to a horizon.

        `keras_fds.fit` and `model.fit` call it themselves. A training loop of your own calls it
        before its first step.

        Args:
            horizon: Training steps over which the schedules stretch, a positive int.
            elapsed: Number of steps that are done already. Defaults to `0`.

        Example:

        >>> optimizer.begin_schedules(horizon=steps_per_epoch * epochs)
        """
        self._horizon.assign(horizon)
        self._first_iteration.assign(steps_taken(self.optimizer) - elapsed)

    @property
    def coordinates(self) -> np.ndarray:
        """The vector of all bucket values, in their coordinates; float64 `[total_buckets]`."""
        return self._coordinates.numpy()

    @coordinates.setter
    def coordinates(self, coordinates: np.ndarray) -> None:
        self._coordinates.assign(coordinates)

    @property
    def schedule_variables(self) -> list[keras.Variable]:
        """The variables that the schedules are computed from."""
        return [self._coordinates, self._horizon, self._first_iteration]

    @property
    def values(self) -> dict[str, np.ndarray]:
        """`{name: float64 [num_buckets]}`, of vectors `[num_buckets, *shape]`."""
        return self.buckets.values(self.coordinates)

    @property
    def hypergradients(self) -> dict[str, np.ndarray]:
        """`{name: float64 [num_buckets]}` of the last outer step; empty where it has none.

        They are derivatives by the hyperparameters' coordinates, means over the steps of a bucket;
        of vectors `[num_buckets, *shape]`.
        """
        observations: list = self.search.observations if self.search else []
        if not observations or observations[-1].hypergradients is None:
            return {}
        return self.buckets.means(observations[-1].hypergradients, observations[-1].horizon)

    @property
    def bands(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """`{name: (below, above)}`: how sure the search is of the best values; empty before one.

        Both are float64 `[num_buckets]`, one standard deviation of what the best values are below
        and above them. A value whose band spans most of its range hardly matters. Vectors have no
        bands.
        """
        records: list = self.search.records if self.search else []
        found = [record.bands for record in records if record.bands]
        if not found:
            return {}
        below, above = found[-1]
        return {name: (np.array(below[name]), np.array(above[name])) for name in below}

    @property
    def schedules(self) -> dict[str, BucketedSchedule]:
        """`{name: BucketedSchedule}` over the present horizon; can be set to such a dictionary.

        Vectors whose length is not known before `fit` has seen the data are left out until then.
        """
        values = self.values
        return {
            h.name: BucketedSchedule(values[h.name], self.horizon, h.interpolation)
            for h in self.hyperparameters
            if h.is_settled
        }

    @schedules.setter
    def schedules(self, schedules: Mapping[str, BucketedSchedule]) -> None:
        for h in self.hyperparameters:
            schedule = schedules.get(h.name)
            if not isinstance(schedule, BucketedSchedule) or schedule.values.ndim == 1:
                continue
            if h.may_become(schedule.values.shape[1:]):
                self.settle({h.name: schedule.values[0]})
        for hyperparameter in self.hyperparameters:
            schedule = schedules.get(hyperparameter.name)
            hyperparameter.check_schedule(schedule)
        self.coordinates = self.buckets.coordinates(
            {name: schedules[name].values for name in self.names}
        )

    def divide(self, values: Mapping[str, np.ndarray]) -> None:
        """Holds other numbers of values: `{name: float64 [num_buckets]}`.

        What a model has compiled for this optimizer keeps the old numbers, see `forget_compiled`.
        """
        self.hyperparameters = [h.divided(len(values[h.name])) for h in self.hyperparameters]
        self._hold(values)

    def values_at(self, inner_step: Any, horizon: Any, dtype: Any) -> dict[str, Any]:
        """`{name: tensor}` at an inner step; both arguments integer tensors."""
        inner_step, horizon = (tf.cast(n, "int64") for n in (inner_step, horizon))
        return self.buckets.values_at(self._coordinates.value, inner_step, horizon, dtype)

    def present_values(self, dtype: Any) -> dict[str, Any]:
        """`{name: tensor}` at the number of batches that the optimizer has seen."""
        elapsed = steps_taken(self.optimizer) - self._first_iteration
        return self.values_at(elapsed, self._horizon.value, dtype)

    # --------------------------------------------------------------- numbers of the model
    @property
    def model_names(self) -> list[str]:
        """The learned numbers of the model and its loss, see `Hyperparameter`."""
        of_optimizer = self._optimizer_names
        return [n for n in self.names if n not in of_optimizer and not is_multiplier(n)]

    @property
    def multiplied_names(self) -> list[str]:
        """The learned factors on the learning rates of layers."""
        return [name for name in self.names if is_multiplier(name)]

    @property
    def each_names(self) -> list[str]:
        """Those that have one value for every layer or loss that they match."""
        return [h.name for h in self.hyperparameters if h.each]

    def multiplied(self, model: keras.Model) -> dict[str, list[list[keras.Variable]]]:
        """`{name: groups of variables}` of the learned factors on the learning rates of layers."""
        each = self.each_names
        found = {
            name: multiplied_variables(model, name, name in each) for name in self.multiplied_names
        }
        self.__dict__["_multiplied"] = found  # Not tracked: Keras would save them as its own.
        return found

    def settle(self, held: Mapping[str, np.ndarray]) -> bool:
        """Takes over the shapes and start values of vectors, `{name: array}`.

        Returns:
            Whether a shape was not known before; then all that was compiled is void.
        """
        before, values = {h.name: (h.is_settled, h.shape) for h in self.hyperparameters}, {}
        for h, present in zip(self.hyperparameters, self.values.values()):
            if h.name in held:
                h.settle(held[h.name])
            new = before[h.name] != (h.is_settled, h.shape)
            values[h.name] = h.initial_values if new else present
        if all(before[h.name] == (h.is_settled, h.shape) for h in self.hyperparameters):
            return False
        self._hold(values)
        return True

    def _hold(self, values):
        """Holds values whose number may differ from that of the ones before."""
        self.buckets = Buckets(self.hyperparameters)
        coordinates = self.buckets.coordinates(values)
        if len(coordinates) == self._coordinates.shape[0]:
            self._coordinates.assign(coordinates)
            return
        variable = keras.Variable(coordinates, trainable=False, dtype="float64", name="coordinates")
        replace_variable(self, self._coordinates, variable)
        self._coordinates = variable

    # ------------------------------------------------------------ the Keras optimizer's part
    def build(self, variables):
        if self.built:
            return
        build_optimizer(self.optimizer, self._optimizer_names, variables)
        super().build(variables)

    @property
    def _optimizer_names(self):
        return [n for n in self.names if "." not in n and n not in EXAMPLE_WEIGHTS]

    def reset_slots(self) -> None:
        """Puts the wrapped optimizer's slots and its iteration count back to their start."""
        names = self._optimizer_names
        fresh = fresh_slots(self.optimizer, names, self._trainable_variables)
        for variable, value in zip(self.optimizer.variables, fresh):
            variable.assign(value)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(list(trainable_variables))
        if not self._trainable_variables:
            raise ValueError(
                "This optimizer was built without weights, as Keras does when it loads a model "
                "from an HDF5 file. Call model.compile(optimizer=keras_fds.HyperOptimizer(...)) "
                "again, or save models as '.keras'."
            )
        values = self.present_values(self._trainable_variables[0].dtype)
        if self._multiplied is None and any(map(is_multiplier, self.names)):
            raise ValueError(
                "A learned `learning_rate_multiplier` needs `model.fit` or `keras_fds.fit`, which "
                "tell the optimizer its model."
            )
        multiplied = self._multiplied or {}
        scalars = scalars_of({name: values[name] for name in multiplied})
        multipliers = multipliers_of(multiplied, scalars)
        own = {name: values[name] for name in self._optimizer_names}
        view = with_hyperparameters(self.optimizer, own, multipliers)
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
                "The learning rate of this optimizer is a learned schedule and cannot be set. "
                "Set `optimizer.schedules`, or do not learn 'learning_rate'."
            )
        self.optimizer.learning_rate = learning_rate

    def scale_loss(self, loss):
        return self.optimizer.scale_loss(loss)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        self.optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list):
        self.optimizer.finalize_variable_values(var_list)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Assigns values to `variables`, in their order, as HDF5 files hold them.

        Keras builds an optimizer without slots when it loads it from such a file; values beyond the
        existing variables are ignored.
        """
        for variable, value in zip(self.variables, weights):
            variable.assign(value)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        for key, array in self.search.to_arrays().items() if self.searching else ():
            store[key] = array

    def load_own_variables(self, store):
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118, no mapping in Keras
        own = {key: entries.pop(key) for key in list(entries) if key.isdecimal()}
        if any(key.startswith("search") for key in entries):
            self.loaded_search = entries
        elif len(own) > len(self.variables):
            raise ValueError(
                "The model was saved by an older keras_fds, whose HyperOptimizer kept the state of "
                "its outer rule. Build the model again, then load its weights by `load_weights` "
                "and its schedules from schedules.json."
            )
        if len(own) < len(self.variables):  # Saved before any training, without slots.
            for key, value in own.items():
                self.variables[int(key)].assign(value)
        else:
            super().load_own_variables(own)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            "name": self.name,
            "optimizer": serialize(self.optimizer),
            "hyperparameters": [serialize(h) for h in self.hyperparameters],
            "outer": serialize(self.outer),
            **{
                name: getattr(self, name)
                for name in ("tangent_clipvalue", "tangents_per_pass")
                if getattr(self, name) is not None
            },
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(value):
            return keras.saving.deserialize_keras_object(value, custom_objects=custom_objects)

        config = {k: v for k, v in config.items() if not k.startswith("pruning")}  # Of older ones.
        config["optimizer"] = deserialize(config["optimizer"])
        config["hyperparameters"] = [deserialize(h) for h in config["hyperparameters"]]
        if config["outer"]["class_name"] != "TrustRegionDescent":  # A rule of older versions.
            config["outer"] = deserialize(config["outer"])
        else:
            del config["outer"]
        names = ("tangent_clipvalue", "tangents_per_pass")
        older = {name: config.pop(name, None) for name in names}
        optimizer = cls(**config)
        vars(optimizer).update(older)  # Without a second warning.
        return optimizer


def _checked(optimizer, hyperparameters):
    """The hyperparameters as a list; a `ValueError` for what cannot be learned."""
    check_optimizer(optimizer)
    if not isinstance(hyperparameters, (list, tuple)):
        raise ValueError(
            "`hyperparameters` must be a list of keras_fds.Hyperparameter. "
            f"Received: hyperparameters={hyperparameters!r}"
        )
    for hyperparameter in hyperparameters:
        if not isinstance(hyperparameter, Hyperparameter):
            raise ValueError(
                "`hyperparameters` must be a list of keras_fds.Hyperparameter. "
                f"Received: {hyperparameter!r}"
            )
        check_hyperparameter(optimizer, hyperparameter)
    names = [hyperparameter.name for hyperparameter in hyperparameters]
    if len(set(names)) < len(names):
        raise ValueError(f"A hyperparameter is named twice. Received: {names}")
    return list(hyperparameters)


def _check_outer(outer):
    if isinstance(outer, type) or not hasattr(outer, "propose"):
        raise ValueError(
            "`outer` must be an outer update rule, such as "
            f"keras_fds.outer.BayesianOptimization(). Received: outer={outer!r}"
        )


def _deprecated(name, value):
    """A number of forward mode that was an argument here."""
    if value is None:
        return None
    argument = {"tangents_per_pass": "tangent_chunk_size"}.get(name, name)
    warnings.warn(
        f"`{name}` of HyperOptimizer is now "
        f"fit(differentiation=keras_fds.differentiation.Forward({argument}={value!r})).",
        DeprecationWarning,
        stacklevel=3,
    )
    whole = name == "tangents_per_pass"
    return number(name, value, least=1, whole=True) if whole else number(name, value, above=0)
