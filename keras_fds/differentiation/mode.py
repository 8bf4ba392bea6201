"""The contract of a mode of differentiation."""

import copy

import keras
import tensorflow as tf

from keras_fds.data import get_batch, in_graph, size_in_bytes, telling_of_the_end
from keras_fds.differentiation.divergence import steps_while_ok
from keras_fds.differentiation.inner_step import InnerStep
from keras_fds.differentiation.replicas import ONE, Replicas
from keras_fds.functional import kept_with
from keras_fds.internals import tf_compilation

_MOST_KEPT = 8  # Bound modes and inner steps that a model keeps.


class Mode:
    """How hypergradients are computed: options, and, bound to a model, an unroll of its training.

    A mode is passed to `fit` as `differentiation=`. There it is bound to the model, which keeps
    the compiled functions: a second search or unroll with batches of the same form compiles
    nothing. The public names here are the contract of the modes; callers use nothing else.

    Attributes:
        name: The mode's name in messages and checkpoints.
        goes_back: Whether `hypergradients` goes back over all steps of a run.
        horizon: Number of inner steps of the present run.
        parallel: What replicas share: the examples of a `"batch"`, or `"tangents"`.
        replicas: The `Replicas` of a bound mode.
    """

    name: str
    goes_back = False
    parallel = "batch"
    replicas = ONE

    def bind(self, model, spec, replicas=None):
        """The mode for a model and the specs `(x, y, sample_weight)` of its batches.

        `replicas` share a training. Defaults to `None`, those of the model's strategy.
        """
        replicas = replicas or Replicas.of(model)
        shared = ONE if self.parallel == "tangents" else replicas

        def make():
            return InnerStep(model, spec, shared)

        step = _kept(model, ("step", str(spec), *shared.devices), make)
        if step.in_use:  # By a search, one of whose callbacks asks for hypergradients.
            return self._bound(model, make(), replicas)
        key = type(self), self.compiled_options, str(spec), *replicas.devices, self.parallel
        return _kept(model, key, lambda: self._bound(model, step, replicas))

    @property
    def compiled_options(self):
        """The options that the compiled functions depend on, a tuple."""
        return ()

    def _bound(self, model, step, replicas):
        bound = copy.copy(self)
        bound.step, bound.replicas = step, replicas
        bound.hyper_optimizer, bound.buckets = model.optimizer, model.optimizer.buckets
        bound.build()
        return bound

    def build(self):
        """Makes variables and functions, once `step`, `hyper_optimizer` and `buckets` are there."""
        self._run = tf_compilation.compiled(self._run_in_graph)
        self._pure_step = self.step.compiled(self.step.__call__)

    def supports(self, batches):
        """Why the mode cannot be used with batches: a sentence, or an empty string."""
        return ""

    def check_batches(self, batches):
        """Raises a `ValueError` when the replicas cannot share batches."""
        if self.parallel == "batch":
            self.replicas.check_batches(batches)

    def check_memory(self, batches, horizon):
        """Raises a `ValueError` when a run would need more memory than the mode may use."""

    def cost(self, horizon):
        """Time of an inner step, in steps of plain training."""
        raise NotImplementedError

    def work(self, horizon):
        """The relative time of every step of a run, such as the number of tangents, `[horizon]`."""
        raise NotImplementedError

    def memory(self, horizon):
        """What is kept in memory: list of `(what, bytes)`."""
        return [("state", size_in_bytes(self.step.variables))]

    # ------------------------------------------------------------------------------ a run
    def reset(self, horizon, divergence_factor=None, fresh_slots=True):
        """Begins a run.

        Args:
            horizon: Number of inner steps.
            divergence_factor: See `DivergenceDetector`. Defaults to `None`, infinity.
            fresh_slots: Whether the optimizer's slots begin anew. Defaults to `True`.
        """
        self.horizon, self.step.in_use = int(horizon), True
        self.step.reset(self.horizon, divergence_factor, fresh_slots)

    def run(self, source, position, inner_step, count):
        """Runs `count` inner steps, or fewer when the run is given up.

        Args:
            source: The source of batches, see `get_batch`.
            position: Number of the first batch in the source.
            inner_step: The first inner step, counted from the start of the horizon.
            count: Number of steps.

        Returns:
            `(steps, ok)`: steps done, and whether the run was not given up.
        """
        arguments = map(tf.constant, (position, inner_step, count, self.horizon))
        with telling_of_the_end("`steps_per_epoch`"):
            steps, ok = self._run(in_graph(source), *arguments)
        return int(steps), bool(ok)

    def _run_in_graph(self, source, position, inner_step, count, horizon):
        def one_step(i):
            return [self._step(get_batch(source, position + i), inner_step + i, horizon)]

        return steps_while_ok(count, one_step, detector=self.step.detector)

    def _step(self, batch, inner_step, horizon):
        """One inner step; returns the training loss."""
        hyperparameters = self.step.hyperparameters(inner_step, horizon)
        after, loss, outputs = self._pure_step(
            self.step.read(), hyperparameters, batch, inner_step + 1 >= horizon
        )
        self.step.assign(after)
        self.step.model.update_metrics(batch, loss, outputs)
        return loss

    def validate(self, source, num_batches, training=False, at_batch=None):
        """`(loss, error)`: the validation loss at the present state, and its standard error.

        Args: see `InnerStep.validate`. The error is `None` for one batch.
        """
        validation = self.step.validate(source, num_batches, training, at_batch)
        self.validation_gradients = validation.mean_gradients()
        return validation.loss_and_error()

    def hypergradients(self):
        """Derivatives of the last validation loss by all bucket values, `[total_buckets]`."""
        raise NotImplementedError

    def per_step(self):
        """Its derivatives by the values at single steps, float64 `[horizon, hyperparameters]`."""
        raise ValueError(
            f"{self.name.capitalize()} mode has no hypergradients of single steps. Use "
            "differentiation='reverse'."
        )

    def release(self):
        """Frees what only the present run needs."""
        self.validation_gradients = None
        self.step.in_use = False

    # ------------------------------------------------------------------ what a search must know
    @property
    def checkpoint_variables(self):
        """What a run changes beside model and optimizer; `None` if it cannot be resumed."""
        return list(self.step.detector.seen)

    @property
    def protected_variables(self):
        """The model's variables that callbacks must not assign between the steps of a run."""
        raise NotImplementedError

    @property
    def outside_variables(self):
        """Variables that a step assigns and that the model does not track."""
        return self.step.model.outside

    @property
    def trained_variables(self):
        """The variables of the model that training changes."""
        return self.step.model.trained

    @property
    def break_down_reason(self):
        """Why a run was given up: the predicate of a sentence about its training loss."""
        return self.step.detector.reason

    def check_trainable(self):
        """Raises a `ValueError` when other weights are trainable now than at the beginning."""
        self.step.model.check_trainable()

    def get_config(self):
        """The options."""
        return {}

    @classmethod
    def from_config(cls, config):
        """A mode with these options."""
        return cls(**config)

    def __repr__(self):
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


def _kept(model, key, make):
    key = (keras.config.floatx(), *key)
    kept = kept_with(model)
    if key not in kept:
        made = make()
        kept = kept_with(model)  # Making it may have built the model.
        kept[key] = made
        while len(kept) > _MOST_KEPT:
            kept.pop(next(iter(kept)))
    return kept[key]
