"""`fit`, a search for schedules; `fit_online`, one training; `hypergradients`, one unroll."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from keras_fds.callbacks import SearchProgress
from keras_fds.data import finite_batches, raising_errors_of, split_data_of
from keras_fds.differentiation import ONE, Mode, Online, Plain, choose_mode
from keras_fds.functional import float64, float64_twin, forget_compiled, in_float64
from keras_fds.numbers import number
from keras_fds.outer import Problem
from keras_fds.search import (
    OnlineLoop,
    OuterLoop,
    Rounds,
    Search,
    WeightInitializer,
    arguments,
    search_fingerprint,
)

Differentiation = Literal["auto", "forward", "reverse"] | Mode


def fit(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: float | Sequence[float] = 1,
    verbose: Literal["auto", 0, 1, 2] = "auto",
    callbacks: list[keras.callbacks.Callback] | keras.callbacks.CallbackList | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    *,
    budget: float | None = None,
    outer_steps: int | None = None,
    validation_training: bool = False,
    resample_validation: Literal["once", "outer_step"] | None = None,
    initial_weights: Literal["fresh", "same"] | Callable[[], keras.Model] = "fresh",
    differentiation: Differentiation = "auto",
    reverse_memory: int | None = None,
    parallel: Literal["outer_steps"] | None = None,
    seed: int | None = None,
    divergence_factor: float | None = 20.0,
    resplit: bool | None = None,
    adjoint_memory: int | None = None,
) -> keras.callbacks.History:
    """Learns the schedules of a model's `HyperOptimizer`: `model.fit` with an outer loop.

    Every outer step trains the model from fresh weights and measures the validation loss, with or
    without its hypergradients; from all that is measured the outer rule proposes the next one. To
    Keras's callbacks and progress bar an outer step is an epoch and an inner step is a batch.
    Afterwards the model holds the best outer step's weights and schedules, and its optimizer fresh
    slots. The outer rule decides which outer step is best.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`. If it is built in the
            scope of a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy`, replicas
            share the work.
        x, y, sample_weight, class_weight, batch_size, shuffle, verbose, callbacks,
            steps_per_epoch, validation_split, validation_data, validation_steps,
            validation_batch_size: As in `model.fit`. `x` is arrays (or a nest of them), a
            `tf.data.Dataset` of batches, or a `keras.utils.PyDataset`, whose batches are made in
            one thread, whatever its `workers`. One of `validation_split` and `validation_data` is
            required. `verbose="auto"` is a progress bar in a terminal or a notebook, and one line
            per outer step elsewhere. A callback that overrides a batch hook is called for every
            batch, which takes longer for small models. No callback may set the learning rate.
        epochs: Epochs of the training that the schedules are for, which may be a fraction; or a
            list with the epochs of every outer step, of which the last are what the schedules are
            for. Defaults to `1`.
        initial_epoch: The outer step to begin at, as in `model.fit`. If the model's last search
            has made as many outer steps, that search continues, and neither settings nor data are
            compared. Defaults to `0`.
        validation_freq: Only `1`: every outer step is validated.
        budget: What the search may cost, in plain trainings of `epochs` epochs, validations not
            counted: at least 2. The outer rule chooses horizons, most of them shorter, and when
            hypergradients are worth their cost. Defaults to `10.0`, with vectors to `100.0`.
        outer_steps: In place of `budget`: the number of outer steps, all over `epochs` epochs and
            with hypergradients. Rules that do not choose horizons need it; their default is `10`.
        validation_training: Whether the validation loss is taken with the model in training
            mode, as the paper does. Defaults to `False`.
        resample_validation: Which examples `validation_split` holds out: `None` the last ones, as
            in Keras; `"once"` random ones, the same in every outer step; `"outer_step"` other
            random ones in every outer step, as in the paper. Defaults to `None`.
        initial_weights: `"fresh"` draws new weights for each outer step from the model's
            initialisers; `"same"` restarts from the present weights; a function must return a
            newly made model, whose weights are taken. Frozen weights are kept. Defaults to
            `"fresh"`.
        differentiation: How hypergradients are computed. All modes compute the same ones.
            `"forward"` carries one tangent per bucket: time grows with the number of buckets,
            memory does not grow with the horizon. `"reverse"` goes back over the steps: it costs
            about four plain trainings for any number of buckets, but keeps states and the batches
            of a dataset. `"auto"` takes the cheaper one that fits. Or a mode with options, such as
            `keras_fds.differentiation.Forward(tangent_chunk_size=10)`. Defaults to `"auto"`.
        reverse_memory: Bytes that reverse mode may keep, the `memory` of
            `keras_fds.differentiation.Reverse`. Defaults to `None`, 1 GiB.
        parallel: What the workers of a `MultiWorkerMirroredStrategy`, with one device each, do at
            the same time: `"outer_steps"` lets each make one of its own, in rounds. Defaults to
            `None`: they share every training.
        seed: The validation split, shuffling, fresh weights and dropout of every outer step derive
            from this whole number of at least 0. Defaults to one drawn from `numpy.random`.
        divergence_factor: An outer step is given up when ten losses in a row exceed this many times
            the loss of its first steps. `None` stops only on NaN or infinity: for a run that starts
            from trained weights, or a loss that may grow. Defaults to `20.0`.
        resplit: Deprecated; `True` is `resample_validation="outer_step"`.
        adjoint_memory: Deprecated; the older name of `reverse_memory`.

    To resume an interrupted search, call `fit` again with `keras_fds.callbacks.Checkpoint` or
    Keras's `BackupAndRestore` on a model and data made as before. It ends as if it had not been
    interrupted. The interrupted outer step runs again, or, in forward mode and in plain trainings,
    continues from a checkpoint within it. A dataset that shuffles must have a seed. Two things
    cannot be replayed: what a dataset draws with `tf.random` in `map`, and, in reverse mode, an
    endless dataset after a training loss that was not finite.

    Returns:
        A `keras.callbacks.History` with one entry per outer step, also for those before an
        interrupt. `val_loss` is the validation loss whose hypergradients are taken: that of
        `model.evaluate` without the penalties of weight and activity regularizers. What layers add
        by `add_loss` counts.

    Raises:
        ValueError: Before any training, when model, data or horizon do not fit together.
        ConnectionError: Another worker of the strategy has stopped or cannot be reached.

    Example:

    >>> history = keras_fds.fit(
    ...     model, x, y, batch_size=128, epochs=10, budget=10, validation_split=0.05
    ... )
    >>> model.optimizer.schedules["learning_rate"]
    """
    begin = time.monotonic()
    arguments.check_compiled(model)
    replicas = arguments.replicas_of(model)
    arguments.check_parallel(parallel, model, replicas, differentiation)
    in_rounds = parallel is not None and replicas.count > 1
    sharing = ONE if in_rounds else replicas  # A training.
    arguments.check_callbacks(callbacks)
    arguments.check_validation_freq(validation_freq)
    arguments.check_targets(model, x, y)
    if arguments.after_online(model.optimizer):
        forget_compiled(model)
    memory = arguments.memory_of_reverse_mode(reverse_memory, adjoint_memory)
    resample = arguments.resampling(resample_validation, resplit, validation_split, validation_data)
    factor = number("divergence_factor", divergence_factor, above=1, optional=True)
    data = split_data_of(
        (x, y, sample_weight),
        validation_data,
        validation_split,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        class_weight=class_weight,
        resample=resample,
        validation_batch_size=validation_batch_size or batch_size,
        validation_steps=validation_steps,
        shuffle=shuffle,
        numbers=arguments.numbers_of_examples(model.optimizer, x),
    )
    arguments.check_data(model, data)
    with replicas.holding(model, data.train.spec):
        arguments.settle(model, data.train)
        horizons, budget = arguments.horizons_or_budget(
            model.optimizer, epochs, outer_steps, budget, data.num_batches
        )
        arguments.check_horizons(model, data, horizons)
        mode, reason = choose_mode(
            model, data.train, max(horizons), differentiation, memory, sharing
        )
        plain = None
        if budget is not None:
            plain = Plain(mode.parallel).bind(model, data.train.spec, sharing)
        initializer = WeightInitializer(model, mode, initial_weights, data.spec[0])
        settings = {
            "divergence_factor": divergence_factor,
            "seed": seed,
            "batch_size": batch_size,
            "shuffle": shuffle,
            "validation_split": validation_split,
            "resample_validation": resample,
            "validation_training": validation_training,
            "outer": type(model.optimizer.outer).__name__,
            **({} if budget is None else {"horizon": horizons[-1]}),
            **search_fingerprint(
                model,
                data.train,
                None if validation_data is None else data.validation,
                initial_weights,
                validation_batch_size or batch_size,
            ),
        }
        arguments.check_same_on_all_workers(
            replicas, data.train, lambda: [settings, bool(verbose), parallel]
        )
        if seed is None:
            seed = int(replicas.agreed(np.random.randint(2**31)))
        first = model.optimizer.coordinates
        search = Search(
            number("seed", seed, least=0, whole=True),
            mode.name,
            horizons=horizons if budget is None else None,
            first=first,
            start=initializer.start,
            resample=resample == "outer_step",
            settings=settings,
        )
        problem = Problem(
            model.optimizer.buckets,
            first,
            horizons[-1],
            horizons=search.horizons,
            budget=budget,
            cost=mode.cost,
            seed=search.seed,
        )
        # Also without output: it looks at datasets, which may share their randomness.
        timing_batches = data.timing_batches()
        progress = None
        if verbose:
            progress = SearchProgress(
                mode,
                plain,
                reason,
                timing_batches,
                problem,
                data.num_batches,
                validation_training,
                begin,
                replicas.processes // sharing.processes,
            )
        loop = (Rounds if in_rounds else OuterLoop)(
            mode,
            plain,
            data,
            initializer,
            arguments.callback_list(
                callbacks,
                model,
                verbose if replicas.is_chief else 0,
                problem.about_outer_steps,
                horizons[0],
                progress,
            ),
            problem,
            validation_training,
            factor,
            replicas,
        )
        initial_epoch = number("initial_epoch", initial_epoch, least=0, whole=True)
        arguments.tell_of_missing_onednn()
        with raising_errors_of(data.train, data.validation):
            return loop.run(initial_epoch, search)


def fit_online(
    model: keras.Model,
    x: Any = None,
    y: Any = None,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: Literal["auto", 0, 1, 2] = "auto",
    callbacks: list[keras.callbacks.Callback] | keras.callbacks.CallbackList | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    *,
    tangent_decay: float = 0.0,
    outer_optimizer: keras.optimizers.Optimizer | None = None,
    objective: Literal["val_loss", "loss"] | None = None,
    resample_validation: Literal["once"] | None = None,
    seed: int | None = None,
    divergence_factor: float | None = 20.0,
) -> keras.callbacks.History:
    """Trains a model once, while its hyperparameters move: `model.fit` with greedy learning.

    In front of every training step the hyperparameters move along the hypergradient of the loss of
    one batch. It looks back only as far as tangents last: with `tangent_decay=0` at the last step,
    which is hypergradient descent (HD); with `1` over the whole training so far, which is real-time
    hyperparameter optimization (RTHO); between them lies MARTHE. All of them are short-sighted:
    `keras_fds.fit` sees the end of training. Afterwards `optimizer.schedules` hold the values that
    the steps used, for `model.fit` to train with from new weights: one value for each step, or,
    over more than 1000 steps, 1000 means. A second call continues with the last ones.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`, all of whose
            hyperparameters have `num_buckets=1`. They begin at the values it holds.
        x, y, sample_weight, class_weight, batch_size, epochs, shuffle, verbose, callbacks,
            initial_epoch, steps_per_epoch, validation_split, validation_data, validation_steps,
            validation_batch_size, validation_freq: As in `model.fit`; `x` as in `keras_fds.fit`.
            Training begins at the present weights. Of a callback that resumes training, tangents
            begin at zero.
        tangent_decay: The factor by which every step shrinks the tangents, from 0 to 1. Defaults
            to `0.0`.
        outer_optimizer: The stock Keras optimizer that moves the hyperparameters' coordinates,
            which it counts in units of their `step_size`. With `keras.optimizers.SGD(...)` and a
            `step_size` of 1, the steps are those of the papers. Defaults to `None`,
            `keras.optimizers.Adam(0.03)`: a step moves a coordinate by at most about 3% of its
            `step_size`.
        objective: The loss that has the hypergradients: `"val_loss"`, that of the validation
            batches in turn, which are kept in memory; or `"loss"`, that of the next training
            batch, in training mode, as HD has it. Both are without the penalties of regularizers.
            Defaults to `None`: `"val_loss"` where there are validation data.
        resample_validation: Which examples `validation_split` holds out: `None` the last ones, as
            in Keras, or `"once"` random ones, the same as `keras_fds.fit` with this seed. Defaults
            to `None`.
        seed: The validation split and shuffling derive from this whole number of at least 0.
            Defaults to one drawn from `numpy.random`.
        divergence_factor: As in `keras_fds.fit`: training ends when ten losses in a row exceed this
            many times that of the first steps. Defaults to `20.0`.

    Returns:
        A `keras.callbacks.History` with one entry per epoch: losses and metrics, and the value of
        each hyperparameter at the end of the epoch. `val_loss` is that of `keras_fds.fit`.

    Raises:
        ValueError: Before any training, when model, data and arguments do not fit together.

    Example:

    >>> history = keras_fds.fit_online(
    ...     model, x, y, batch_size=128, epochs=10, validation_split=0.05, tangent_decay=0.9
    ... )
    >>> history.history["learning_rate"]

    Reference: Baydin et al. (2018), HD; Franceschi et al. (2017), RTHO; Donini et al. (2020),
    MARTHE.
    """
    arguments.check_compiled(model)
    arguments.check_one_replica(model, "fit_online")
    optimizer = model.optimizer
    arguments.check_callbacks(callbacks, online=True, learned="learning_rate" in optimizer.names)
    arguments.check_targets(model, x, y)
    objective = arguments.objective_online(objective, validation_data, validation_split)
    mode = Online(
        number("tangent_decay", tangent_decay, least=0, most=1),
        arguments.outer_optimizer_of(outer_optimizer),
    )
    if objective == "val_loss" or resample_validation is not None:
        resample_validation = arguments.resampling(
            resample_validation, None, validation_split, validation_data
        )
    epochs = number("epochs", epochs, least=1, whole=True)
    initial_epoch = number("initial_epoch", initial_epoch, least=0, whole=True)
    factor = number("divergence_factor", divergence_factor, above=1, optional=True)
    seed = np.random.randint(2**31) if seed is None else seed
    seed = number("seed", seed, least=0, whole=True)
    data = split_data_of(
        (x, y, sample_weight),
        validation_data,
        validation_split,
        batch_size=batch_size,
        steps_per_epoch=steps_per_epoch,
        class_weight=class_weight,
        resample=resample_validation,
        validation_batch_size=validation_batch_size or batch_size,
        validation_steps=validation_steps,
        shuffle=shuffle,
    )
    arguments.check_data_online(model, data, epochs, objective)
    with arguments.replicas_of(model).holding(model, data.train.spec):
        arguments.begin_online(optimizer)
        loop = OnlineLoop(
            mode.bind(model, data.train.spec),
            data,
            objective,
            arguments.callback_list(callbacks, model, verbose, epochs, data.num_batches),
            arguments.validation_freq_of(validation_freq),
            factor,
        )
        with raising_errors_of(data.train, data.validation):
            return loop.run(initial_epoch, epochs, seed)


def hypergradients(
    model: keras.Model,
    train_data: Any,
    validation_data: Any,
    validation_training: bool = False,
    differentiation: Differentiation = "forward",
    reverse_memory: int | None = None,
    per_step: bool = False,
    dtype: Literal["float64"] | None = None,
    adjoint_memory: int | None = None,
) -> dict[str, np.ndarray]:
    """The hypergradients of one unroll from the model's current weights.

    Trains with the current schedules and fresh optimizer slots over the batches of `train_data`, in
    their order; their number is the horizon. Then weights, optimizer and schedules are restored.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`; a strategy as in `fit`.
        train_data: A finite `tf.data.Dataset` or `keras.utils.PyDataset` of batches.
        validation_data: Another one. The validation loss is that of `model.evaluate` without the
            penalties of regularizers.
        validation_training: Whether the model is in training mode for the validation loss.
            Defaults to `False`.
        differentiation, reverse_memory: As in `fit`. `differentiation` defaults to `"forward"`, or
            to `"reverse"` with `per_step`.
        per_step: Whether to return the hypergradient of every single inner step, as if each were a
            bucket of its own, at no further cost in reverse mode. Defaults to `False`.
        dtype: `"float64"` trains and differentiates a float64 twin of the model: in float32, long
            unrolls through batch normalisation lose digits. (Float64 tangents of a float32 model
            would not help: the digits are lost in the products.) Defaults to `None`, the model's
            own dtype.
        adjoint_memory: Deprecated; the older name of `reverse_memory`.

    Returns:
        `{name: float64 array [num_buckets]}`, derivatives by the hyperparameters' coordinates; a
        bucket's value is the mean over its steps; of vectors `[num_buckets, *shape]`. With
        `per_step`, which vectors do not have, `{name: [horizon]}`.

    Raises:
        ValueError: When model and data do not fit together.
        ConnectionError: Another worker of the strategy has stopped or cannot be reached.

    Example:

    >>> keras_fds.hypergradients(model, train_dataset.batch(128), validation_dataset.batch(500))
    {'learning_rate': array([-0.012, -0.007]), 'momentum': array([-0.0004])}
    """
    arguments.check_compiled(model)
    replicas = arguments.replicas_of(model)
    if per_step and differentiation == "forward":
        differentiation = "reverse"
    memory = arguments.memory_of_reverse_mode(reverse_memory, adjoint_memory)
    options = replicas, validation_training, differentiation, memory, per_step
    if dtype is None:
        train, validation = finite_batches(train_data, validation_data)
        return _hypergradients(model, train, validation, *options)
    if dtype != "float64":
        raise ValueError(f"`dtype` must be None or 'float64'. Received: dtype={dtype!r}")
    with float64():
        train, validation = finite_batches(in_float64(train_data), in_float64(validation_data))
        with model.distribute_strategy.scope():
            twin = float64_twin(model, None, train)
        return _hypergradients(twin, train, validation, *options)


def _hypergradients(
    model, train, validation, replicas, validation_training, differentiation, memory, per_step
):
    with replicas.holding(model, train.spec):
        arguments.check_same_on_all_workers(
            replicas,
            train,
            lambda: [search_fingerprint(model, train, validation, "same", None), differentiation],
        )
        arguments.settle(model, train)
        horizon, buckets = train.num_batches, model.optimizer.buckets
        arguments.check_buckets(model.optimizer, horizon)
        mode, _ = choose_mode(model, train, horizon, differentiation, memory)
        variables = [*model.variables, *mode.outside_variables, *model.optimizer.variables]
        saved = [variable.numpy() for variable in variables]
        try:
            with raising_errors_of(train, validation):
                mode.reset(horizon)
                _, ok = mode.run(train.start(), 0, 0, horizon)
                if not ok:
                    warnings.warn("The training loss stopped being finite.", stacklevel=3)
                mode.validate(validation.start(), validation.num_batches, validation_training)
                if per_step:
                    values = buckets.at_steps(buckets.join(model.optimizer.values), horizon)
                    return {
                        h.name: of_steps * h.derivatives(values[h.name])
                        for h, of_steps in zip(buckets.hyperparameters, mode.per_step().T)
                    }
                derivatives = buckets.derivatives(model.optimizer.coordinates)
                found = buckets.means(mode.hypergradients() * derivatives, horizon)
                unknown = [name for name, values in found.items() if np.isnan(values).any()]
                if unknown and ok:
                    warnings.warn(
                        f"The hypergradients of {', '.join(map(repr, unknown))} are not a number. "
                        "keras_fds.check_hypergradients finds the layer or the loss.",
                        stacklevel=3,
                    )
                return found
        finally:
            mode.release()
            for variable, value in zip(variables, saved):
                variable.assign(value)
