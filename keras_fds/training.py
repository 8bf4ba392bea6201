"""`fit`, a search for schedules, and `hypergradients`, one unroll."""

import time
import warnings

import numpy as np

from keras_fds.callbacks import SearchProgress
from keras_fds.data import finite_batches, raising_errors_of, split_data_of
from keras_fds.differentiation import Plain, choose_mode
from keras_fds.functional import float64, float64_twin, in_float64
from keras_fds.numbers import number
from keras_fds.outer import Problem
from keras_fds.search import OuterLoop, Search, WeightInitializer, arguments, search_fingerprint


def fit(
    model,
    x=None,
    y=None,
    batch_size=None,
    epochs=1,
    verbose="auto",
    callbacks=None,
    validation_split=0.0,
    validation_data=None,
    shuffle=True,
    class_weight=None,
    sample_weight=None,
    initial_epoch=0,
    steps_per_epoch=None,
    validation_steps=None,
    validation_batch_size=None,
    validation_freq=1,
    *,
    budget=None,
    outer_steps=None,
    validation_training=False,
    resample_validation=None,
    initial_weights="fresh",
    differentiation="auto",
    reverse_memory=None,
    seed=None,
    divergence_factor=20.0,
    resplit=None,
    adjoint_memory=None,
):
    """Learns the schedules of a model's `HyperOptimizer`: `model.fit` with an outer loop.

    Every outer step trains the model from fresh weights and measures the validation loss, with or
    without its hypergradients; from all that is measured the outer rule proposes the next one. To
    Keras's callbacks and progress bar an outer step is an epoch and an inner step is a batch.
    Afterwards the model holds the best outer step's weights and schedules, and its optimizer fresh
    slots. The outer rule decides which outer step is best.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
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

    Example:

    >>> history = keras_fds.fit(
    ...     model, x, y, batch_size=128, epochs=10, budget=10, validation_split=0.05
    ... )
    >>> model.optimizer.schedules["learning_rate"]
    """
    begin = time.monotonic()
    arguments.check_compiled(model)
    arguments.check_callbacks(callbacks)
    arguments.check_validation_freq(validation_freq)
    arguments.check_targets(model, x, y)
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
    arguments.settle(model, data.train)
    horizons, budget = arguments.horizons_or_budget(
        model.optimizer, epochs, outer_steps, budget, data.num_batches
    )
    arguments.check_horizons(model, data, horizons)
    mode, reason = choose_mode(model, data.train, max(horizons), differentiation, memory)
    plain = None if budget is None else Plain().bind(model, data.train.spec)
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
    if seed is None:
        seed = np.random.randint(2**31)
    search = Search(
        number("seed", seed, least=0, whole=True),
        mode.name,
        horizons=horizons if budget is None else None,
        first=model.optimizer.coordinates,
        start=initializer.start,
        resample=resample == "outer_step",
        settings=settings,
    )
    problem = Problem(
        model.optimizer.buckets,
        search.first,
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
        )
    loop = OuterLoop(
        mode,
        plain,
        data,
        initializer,
        arguments.callback_list(
            callbacks, model, verbose, problem.about_outer_steps, horizons[0], progress
        ),
        problem,
        validation_training,
        factor,
    )
    initial_epoch = number("initial_epoch", initial_epoch, least=0, whole=True)
    arguments.tell_of_missing_onednn()
    with raising_errors_of(data.train, data.validation):
        return loop.run(initial_epoch, search)


def hypergradients(
    model,
    train_data,
    validation_data,
    validation_training=False,
    differentiation="forward",
    reverse_memory=None,
    per_step=False,
    dtype=None,
    adjoint_memory=None,
):
    """The hypergradients of one unroll from the model's current weights.

    Trains with the current schedules and fresh optimizer slots over the batches of `train_data`, in
    their order; their number is the horizon. Then weights, optimizer and schedules are restored.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
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

    Example:

    >>> keras_fds.hypergradients(model, train_dataset.batch(128), validation_dataset.batch(500))
    {'learning_rate': array([-0.012, -0.007]), 'momentum': array([-0.0004])}
    """
    arguments.check_compiled(model)
    if per_step and differentiation == "forward":
        differentiation = "reverse"
    memory = arguments.memory_of_reverse_mode(reverse_memory, adjoint_memory)
    options = validation_training, differentiation, memory, per_step
    if dtype is None:
        return _hypergradients(model, *finite_batches(train_data, validation_data), *options)
    if dtype != "float64":
        raise ValueError(f"`dtype` must be None or 'float64'. Received: dtype={dtype!r}")
    with float64():
        batches = finite_batches(in_float64(train_data), in_float64(validation_data))
        return _hypergradients(float64_twin(model, None, batches[0]), *batches, *options)


def _hypergradients(
    model, train, validation, validation_training, differentiation, memory, per_step
):
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
