"""Arguments of `fit` and `hypergradients`, checked before any computation."""

import functools
import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import ArrayBatches, num_examples, numbers, yields_batches
from keras_fds.differentiation import Replicas
from keras_fds.functional import (
    EXAMPLE_WEIGHTS,
    AnnounceHorizon,
    example_places,
    settle_vectors,
)
from keras_fds.hyper_optimizer import HyperOptimizer
from keras_fds.internals import keras_distribution, tf_graph
from keras_fds.numbers import number
from keras_fds.outer import Rule
from keras_fds.search.fingerprint import checksum

_BUDGET, _BUDGET_OF_VECTORS = 10.0, 100.0  # By default, in plain trainings.
_LEAST_OF_VECTORS = 12


def check_compiled(model):
    """Raises a `ValueError` unless the model is compiled in a way that can be differentiated."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: model={model!r}")
    if not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled. Call model.compile(optimizer="
            "keras_fds.HyperOptimizer(...), loss=...) first."
        )
    if not isinstance(model.optimizer, HyperOptimizer):
        hint = ""
        if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            hint = (
                " Keras wraps it under 'mixed_float16', in a loss scale that moves and skips "
                "steps, whose hypergradients would be wrong: pass auto_scale_loss=False to "
                "compile(), and loss_scale_factor=1024.0 to the wrapped optimizer."
            )
        raise ValueError(
            f"The model {model.name!r} must be compiled with a keras_fds.HyperOptimizer."
            f"{hint} Received: optimizer={model.optimizer}"
        )
    for loss in keras.tree.flatten(model.loss):
        if isinstance(loss, keras.losses.Circle) or loss in ("circle", "Circle"):
            raise ValueError(
                "The loss Circle is not twice differentiable: TensorFlow's second derivative of it "
                "is not a number, so no hypergradient can pass through it. Use another loss."
            )
    if model.run_eagerly:
        raise ValueError(
            f"The model {model.name!r} is compiled with run_eagerly=True, and keras_fds trains in "
            "compiled loops only. Call compile() without it."
        )
    _check_steps(model)


def replicas_of(model):
    """The `Replicas` of a model's strategy; a `ValueError` when it cannot be used."""
    Replicas.check(model.distribute_strategy)
    of_model, *of_optimizers = keras_distribution.strategies_of(model)
    if any(each is not of_model for each in of_optimizers):
        names = ", ".join(type(each).__name__ for each in of_optimizers)
        raise ValueError(
            "The model and its optimizers must be made in the scope of the same tf.distribute "
            f"strategy, or all outside of one. Received: a model of {type(of_model).__name__}, "
            f"optimizers of {names}"
        )
    return Replicas.of(model)


def check_parallel(parallel, model, replicas, differentiation):
    """Raises a `ValueError` unless workers can make outer steps at the same time, if asked for."""
    if parallel is None:
        return
    received = f"Received: parallel={parallel!r}"
    if parallel != "outer_steps":
        raise ValueError(f"`parallel` must be None or 'outer_steps'. {received}")
    strategy = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        raise ValueError(
            "parallel='outer_steps' is for several workers. Build the model in the scope of a "
            f"tf.distribute.MultiWorkerMirroredStrategy, or leave it out. {received} under "
            f"{type(strategy).__name__}"
        )
    if len(replicas.devices) > 1:
        raise ValueError(
            "parallel='outer_steps' needs workers with one device each. Start one for every device "
            f"(CUDA_VISIBLE_DEVICES), or leave it out. {received} and {len(replicas.devices)} "
            "devices in a worker"
        )
    if getattr(differentiation, "parallel", "batch") == "tangents":
        raise ValueError(
            "Workers that make outer steps of their own cannot share tangents. Leave out "
            f"parallel='outer_steps' or Forward(parallel='tangents'). {received}, "
            f"differentiation={differentiation!r}"
        )
    rule = model.optimizer.outer
    if replicas.count > 1 and not hasattr(rule, "propose_several"):
        raise ValueError(
            f"The outer rule {type(rule).__name__} has no `propose_several`. Derive it from "
            f"keras_fds.outer.Rule, or leave out `parallel`. {received}"
        )
    if replicas.count > 1 and type(rule).propose_several is Rule.propose_several:
        warnings.warn(
            f"The outer rule {type(rule).__name__} proposes one outer step at a time, so with "
            "parallel='outer_steps' one worker trains and the others wait. Leave it out: then "
            "they share the work.",
            RuntimeWarning,
            stacklevel=3,
        )


def check_same_on_all_workers(replicas, train, settings):
    """Raises a `ValueError` unless all processes have the same `settings()` and first batch."""
    replicas.check_alike("what they compute", lambda: json.dumps(settings(), default=repr))
    if not isinstance(train, ArrayBatches):
        replicas.check_alike("the first batch", lambda: checksum(tf.nest.flatten(train.first)))


def check_one_replica(model, what):
    """Raises a `ValueError` when a model is distributed."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            f"keras_fds.{what} computes on one device. Build the model outside of the scope of its "
            f"tf.distribute strategy. Received: a strategy with {replicas} replicas"
        )


def _check_steps(model):
    for method in ("train_step", "test_step"):
        own = vars(model).get(method)
        if getattr(own, "of_keras_fds", False):
            own = None
        if own is not None or getattr(type(model), method) is not getattr(keras.Model, method):
            of_instance = f"{model.name!r} has a `{method}` of its own"
            of_class = f"{type(model).__name__} overrides `{method}`"
            raise ValueError(
                f"{of_class if own is None else of_instance}, which cannot be differentiated. "
                "Override `compute_loss` instead: it may call the model's parts, and its result is "
                "what training minimises."
            )


def check_targets(model, x, y):
    """Raises a `ValueError` when arrays come without the targets that the loss needs."""
    is_dataset = isinstance(x, (tf.data.Dataset, keras.utils.PyDataset)) or yields_batches(x)
    if y is None and model.loss is not None and not is_dataset:
        raise ValueError(
            f"`y` is missing: the model is compiled with loss={model.loss!r}. Pass the targets."
        )


def check_batched(model, spec):
    """Raises a `ValueError` when batches have one axis less than the model's inputs.

    Keras adds a last axis of length 1 itself.
    """
    shapes = [tf.TensorShape(tensor.shape) for tensor in getattr(model, "inputs", None) or []]
    received = [tensor.shape for tensor in tf.nest.flatten(spec[0]) if tensor is not None]
    if len(shapes) != len(received) or not received:
        return
    lacking = [r.rank is not None and r.rank + 1 == s.rank for r, s in zip(received, shapes)]
    widened = [
        r.rank is not None and r.concatenate(1).is_compatible_with(s)
        for r, s in zip(received, shapes)
    ]
    if all(lacking) and not all(widened):
        raise ValueError(
            "The dataset's elements lack the batch axis. Call `dataset.batch(batch_size)`. "
            f"Received: inputs {spec[0]}"
        )


def _sample_weight(optimizer):
    """The `Hyperparameter` "sample_weight", or `None`."""
    found = [h for h in optimizer.hyperparameters if h.name == "sample_weight"]
    return found[0] if found else None


def numbers_of_examples(optimizer, x):
    """The number or the group of each example of arrays that learned sample weights belong to."""
    learned = _sample_weight(optimizer)
    of_arrays = not isinstance(x, (tf.data.Dataset, keras.utils.PyDataset))
    if learned is None or not of_arrays or yields_batches(x):
        return None
    groups, number_of = learned.groups, num_examples(x)
    if groups is None:
        return np.arange(number_of)
    if isinstance(groups, int) or len(groups) != number_of:
        raise ValueError(
            "`groups` of 'sample_weight' must be the group of every example of `x`. Received: "
            f"{groups if isinstance(groups, int) else len(groups)} groups for {number_of} examples"
        )
    return groups


def settle(model, batches):
    """Gives learned vectors their shapes, from a model and its training batches.

    From here on, batches whose examples have no learned weight raise a `ValueError`.
    """
    learned, number_of = _sample_weight(model.optimizer), None
    if learned is not None:
        of_batch = numbers(batches.spec)
        if (
            of_batch is None
            or not of_batch.dtype.is_integer
            or of_batch.shape.rank not in (None, 1)
        ):
            raise ValueError(
                "'sample_weight' is learned, so every batch of a dataset needs a fourth part, the "
                "whole number of each example or of its group: (x, y, sample_weight, number). "
                f"Received: batches of {batches.spec}"
            )
        if learned.groups is None and isinstance(batches, ArrayBatches):
            number_of = batches.num_examples
        elif not learned.is_settled:
            raise ValueError(
                "A dataset does not tell how many examples or groups its numbers count. Pass it: "
                "Hyperparameter('sample_weight', groups=number_of_groups)."
            )
    settle_vectors(model, batches.spec, number_of)
    limits = {h.name: h.size for h in model.optimizer.hyperparameters if h.name in EXAMPLE_WEIGHTS}
    if limits:
        batches.check(functools.partial(example_places, names=limits), limits, "The training data")


def check_buckets(optimizer, horizon):
    for hyperparameter in optimizer.hyperparameters:
        if hyperparameter.num_buckets > horizon:
            raise ValueError(
                f"{hyperparameter.name!r} has more buckets than the horizon has inner steps. "
                f"Received: num_buckets={hyperparameter.num_buckets}, horizon={horizon}. Train "
                f"over at least {hyperparameter.num_buckets} batches (more `epochs`, or more "
                "data), or learn fewer buckets."
            )


def check_same_shapes(train, validation):
    def alike(a, b):
        if a is None or b is None:
            return a is b
        same_kind = (a.dtype == tf.string) == (b.dtype == tf.string)
        return same_kind and a.shape[1:].is_compatible_with(b.shape[1:])

    both = [keras.tree.flatten(spec[:2]) for spec in (train, validation)]
    if len(both[0]) != len(both[1]) or not all(map(alike, *both)):
        raise ValueError(
            "`validation_data` must have the structure, shapes and dtypes of the training data. "
            f"Received: training {train[:2]}, validation {validation[:2]}"
        )


def horizons_or_budget(optimizer, epochs, outer_steps, budget, steps_per_epoch):
    """`(horizons, budget)`: inner steps of every outer step; or of the whole horizon, and a budget.

    The budget is `None` where the outer steps are given.
    """
    rule, has_vectors = optimizer.outer, bool(optimizer.buckets.in_vectors.any())
    if budget is not None and (outer_steps is not None or np.ndim(epochs)):
        raise ValueError(
            "`budget` lets the outer rule choose how many outer steps it makes, and their "
            "horizons. Leave it out, or leave out `outer_steps` and give `epochs` as one number. "
            f"Received: budget={budget!r}, outer_steps={outer_steps!r}, epochs={epochs!r}"
        )
    if budget is not None and not rule.chooses_horizons:
        raise ValueError(
            f"{type(rule).__name__} does not search within a budget. Pass `outer_steps`. "
            f"Received: budget={budget!r}"
        )
    if outer_steps is None and not np.ndim(epochs):
        if rule.chooses_horizons:
            if budget is None:
                budget = _BUDGET_OF_VECTORS if has_vectors else _BUDGET
            budget = number("budget", budget, least=2)
            if has_vectors and budget < _LEAST_OF_VECTORS:
                raise ValueError(
                    "Where vectors are learned, `budget` must be at least "
                    f"{_LEAST_OF_VECTORS}: they descend along hypergradients, of which one costs "
                    f"several plain trainings. Received: budget={budget}"
                )
            return [_inner_steps(epochs, steps_per_epoch)], float(budget)
        outer_steps = 10
    if outer_steps is None:
        outer_steps = len(epochs)
    outer_steps = number("outer_steps", outer_steps, least=1, whole=True)
    each = list(epochs) if np.ndim(epochs) else [epochs] * outer_steps
    if len(each) != outer_steps:
        raise ValueError(
            f"`epochs` must be one number, or {outer_steps} numbers, one per outer step. "
            f"Received: epochs={epochs!r}"
        )
    return [_inner_steps(one, steps_per_epoch) for one in each], None


def _inner_steps(epochs, steps_per_epoch):
    return max(1, round(number("epochs", epochs, above=0) * steps_per_epoch))


def check_data(model, data):
    """Raises a `ValueError` when model and data do not fit together."""
    check_batched(model, data.train.spec)
    check_same_shapes(data.train.spec, data.validation.spec)


def check_horizons(model, data, horizons):
    """Raises a `ValueError` when data, buckets and horizons do not fit together."""
    check_passes(data.train, max(horizons))
    check_buckets(model.optimizer, min(horizons))


def after_online(optimizer):
    """After `fit_online`, whose values are of single steps, each hyperparameter has its last one.

    Returns whether it was so.
    """
    was_online = optimizer.search is not None and optimizer.search.mode == "online"
    if was_online:
        optimizer.divide({name: values[-1:] for name, values in optimizer.values.items()})
    return was_online


def begin_online(optimizer):
    """Raises a `ValueError` unless the optimizer learns single values; begins with them.

    After an earlier `fit_online` these are its last ones.
    """
    if after_online(optimizer):
        return
    for hyperparameter in optimizer.hyperparameters:
        if hyperparameter.is_vector:
            raise ValueError(
                f"{hyperparameter.name!r} is a vector, and fit_online moves single numbers. Learn "
                "it with keras_fds.fit, or leave it out."
            )
        if hyperparameter.num_buckets > 1:
            raise ValueError(
                f"{hyperparameter.name!r} has {hyperparameter.num_buckets} values, and fit_online "
                "moves one value while the weights train. Make the Hyperparameter with "
                f"num_buckets=1. Received: num_buckets={hyperparameter.num_buckets}"
            )


def objective_online(objective, validation_data, validation_split):
    """`objective` of `fit_online`: `"val_loss"` or `"loss"`."""
    has_validation = validation_data is not None or bool(validation_split)
    if objective is None:
        return "val_loss" if has_validation else "loss"
    if objective not in ("loss", "val_loss"):
        raise ValueError(
            f"`objective` must be 'loss' or 'val_loss'. Received: objective={objective!r}"
        )
    if objective == "val_loss" and not has_validation:
        raise ValueError(
            "objective='val_loss' needs validation data: pass `validation_split` or "
            "`validation_data`."
        )
    return objective


def validation_freq_of(validation_freq):
    """`validation_freq`, as in Keras: a number, or the epochs after which to validate."""
    if isinstance(validation_freq, (list, tuple, set)):
        return validation_freq
    return number("validation_freq", validation_freq, least=1, whole=True)


def outer_optimizer_of(outer_optimizer):
    """`outer_optimizer` of `fit_online`."""
    if outer_optimizer is None:
        return keras.optimizers.Adam(0.03)
    if isinstance(outer_optimizer, HyperOptimizer) or not isinstance(
        outer_optimizer, keras.optimizers.Optimizer
    ):
        raise ValueError(
            "`outer_optimizer` must be a stock keras.optimizers.Optimizer, such as "
            f"keras.optimizers.SGD(0.001). Received: outer_optimizer={outer_optimizer!r}"
        )
    return outer_optimizer


def check_data_online(model, data, epochs, objective):
    """Raises a `ValueError` when model, data and the length of `fit_online` do not fit together."""
    specs = tf.nest.flatten(data.validation.spec) if objective == "val_loss" else []
    if not all(spec is None or isinstance(spec, tf.TensorSpec) for spec in specs):
        raise ValueError(
            "Sparse and ragged validation batches cannot be taken in turn. Pass dense ones, or "
            "objective='loss'."
        )
    check_batched(model, data.train.spec)
    check_passes(data.train, epochs * data.num_batches)
    if data.validation is not None:
        check_same_shapes(data.train.spec, data.validation.spec)


def check_callbacks(callbacks, online=False, learned=True):
    """Raises a `ValueError` for objects that are not callbacks or that set the learning rate.

    In `fit_online` these are refused only where the learning rate is learned.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = callbacks.callbacks
    setters = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)
    for callback in keras.tree.flatten(callbacks) if callbacks else ():
        if not isinstance(callback, keras.callbacks.Callback):
            raise ValueError(
                f"`callbacks` must be keras.callbacks.Callback objects. Received: {callback!r}"
            )
        if online and getattr(callback, "saves_search", False):
            raise ValueError(
                f"The callback {type(callback).__name__} keeps a search for `keras_fds.fit`. In "
                "fit_online use keras.callbacks.BackupAndRestore."
            )
        if isinstance(callback, setters) and online and learned:
            raise ValueError(
                f"The callback {type(callback).__name__} sets the learning rate, which fit_online "
                "moves. Leave it out, or do not learn 'learning_rate'."
            )
        if isinstance(callback, setters) and not online:
            refuse_rate_setters(f"The callback {type(callback).__name__} sets")


def refuse_rate_setters(what):
    raise ValueError(
        f"{what} the learning rate. To callbacks an outer step is an epoch, so outer steps would "
        "train differently and could not be compared. Leave it out: learn 'learning_rate', or give "
        "the wrapped optimizer a keras.optimizers.schedules.LearningRateSchedule."
    )


def check_validation_freq(validation_freq):
    if validation_freq != 1:
        raise ValueError(
            "Every outer step is validated: its hypergradients are those of the validation loss. "
            f"Leave `validation_freq` at 1. Received: validation_freq={validation_freq!r}"
        )


def resampling(resample_validation, resplit, validation_split, validation_data):
    """`resample_validation`, also when the old `resplit` gives it."""
    if resplit is not None:
        warnings.warn(
            "`resplit` is now `resample_validation`: 'outer_step' for True, 'once' for False.",
            DeprecationWarning,
            stacklevel=3,
        )
        resample_validation = "outer_step" if resplit else "once"
    if resample_validation not in (None, "once", "outer_step"):
        raise ValueError(
            "`resample_validation` must be None, 'once' or 'outer_step'. "
            f"Received: resample_validation={resample_validation!r}"
        )
    if validation_data is not None:
        if resample_validation is not None:
            raise ValueError(
                "`resample_validation` draws what `validation_split` holds out. With "
                "`validation_data` leave it out. "
                f"Received: resample_validation={resample_validation!r}"
            )
        return None
    if not (np.isscalar(validation_split) and 0 < float(validation_split or 0) < 1):
        raise ValueError(
            "Hypergradients need validation data: pass `validation_split` between 0 and 1, "
            f"or `validation_data`. Received: validation_split={validation_split!r}"
        )
    return resample_validation


def memory_of_reverse_mode(reverse_memory, adjoint_memory):
    """`reverse_memory`, also when the old `adjoint_memory` gives it."""
    if adjoint_memory is None:
        return reverse_memory
    warnings.warn("`adjoint_memory` is now `reverse_memory`.", DeprecationWarning, stacklevel=3)
    return adjoint_memory


def check_passes(train, horizon):
    """Raises a `ValueError` when Keras would cut an epoch short at the end of the data."""
    left = train.pass_length % train.num_batches
    if left and horizon > train.pass_length - left:
        raise ValueError(
            f"The training data has {train.pass_length} batches, which epochs of "
            f"steps_per_epoch={train.num_batches} do not divide: at the end of the data "
            f"`model.fit` would cut an epoch short, to {left} steps. Choose a `steps_per_epoch` "
            "that divides them, fewer epochs, or a dataset that repeats."
        )


@functools.cache
def tell_of_missing_onednn():
    """Warns, once, when TensorFlow runs without oneDNN on a processor that would profit."""
    if tf_graph.lacks_onednn():
        tf.get_logger().warning(
            "TensorFlow runs without oneDNN on this processor: convolutions take about three "
            "times as long. Set the environment variable TF_ENABLE_ONEDNN_OPTS=1 before Python "
            "starts."
        )


def check_searching(callback):
    """Raises a `ValueError` unless a callback runs in `keras_fds.fit`."""
    optimizer, name = callback.model.optimizer, type(callback).__name__
    if not isinstance(optimizer, HyperOptimizer):
        raise ValueError(
            f"keras_fds.callbacks.{name} shows learned schedules: compile the model with a "
            f"keras_fds.HyperOptimizer. Received: optimizer={optimizer}"
        )
    if not (optimizer.searching or optimizer.moves_online):
        raise ValueError(
            f"keras_fds.callbacks.{name} is for keras_fds.fit, which learns schedules. Leave it "
            "out in `model.fit`, which trains with them."
        )


def callback_list(callbacks, model, verbose, epochs, steps, progress=None):
    """Keras's list of callbacks; adds `progress`, or Keras's bar, if there is no progress bar."""
    if verbose == "auto":  # A bar in a terminal or notebook, else one line per outer step.
        verbose = 1 if sys.stdout.isatty() or "ipykernel" in sys.modules else 2
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        callbacks = keras.tree.flatten(callbacks) if callbacks else []
        # Callbacks that save come last: they save what the others have changed.
        callbacks.sort(key=_saves)
        progress = progress or (verbose and keras.callbacks.ProgbarLogger())
        if progress and not any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks):
            callbacks.append(progress)
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_history=True,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
            model=model,
        )
    # The outer loop sets the horizon itself.
    callbacks.callbacks = [c for c in callbacks.callbacks if not isinstance(c, AnnounceHorizon)]
    return callbacks


def _saves(callback):
    is_stock = isinstance(callback, keras.callbacks.BackupAndRestore)
    return is_stock or getattr(callback, "saves_search", False)
