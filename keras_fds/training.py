"""`fit`, a search for schedules, and `hypergradients`, one unroll."""

import time
import warnings

import numpy as np

from keras_fds.callbacks import SearchProgress
from keras_fds.data import finite_batches, raising_errors_of, split_data_of
from keras_fds.differentiation import choose_mode
from keras_fds.functional import float64, float64_twin, in_float64
from keras_fds.numbers import number
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
    outer_steps=10,
    validation_training=False,
    resample_validation=None,
    initial_weights="fresh",
    differentiation="auto",
    adjoint_memory=None,
    seed=None,
    divergence_factor=20.0,
    resplit=None,
):
    """Learns the schedules of a model's `HyperOptimizer`: `model.fit` with an outer loop.

    Every outer step trains the model from fresh weights over a horizon of `epochs` epochs,
    measures the hypergradients of the validation loss, and moves the schedules. To Keras's
    callbacks and progress bar an outer step is an epoch and an inner step is a batch.
    Afterwards the model holds the best outer step's weights and schedules, and its optimizer fresh
    slots. The outer rule says which one is best: by default the latest one over the last horizon
    whose validation loss is within the noise of the lowest, and whose training was stable.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
        x, y, sample_weight, class_weight, batch_size, shuffle, verbose, callbacks,
            steps_per_epoch, validation_split, validation_data, validation_steps,
            validation_batch_size: As in `model.fit`. `x` is arrays (or a nest of them), a
            `tf.data.Dataset` of batches, or a `keras.utils.PyDataset`, whose batches are made in
            one thread, whatever its `workers`. One of `validation_split` and `validation_data` is
            required. `verbose="auto"` is a progress bar in a terminal or a notebook, and a line an
            outer step elsewhere. A callback that overrides a hook of batches is called for every
            batch, which takes longer for small models; none may set the learning rate.
        epochs: Epochs of training in an outer step, which may be a fraction; or a list, one number
            an outer step: a search may begin with short horizons. Defaults to `1`.
        initial_epoch: The outer step to begin at, as in `model.fit`. Defaults to `0`.
        validation_freq: Only `1`: every outer step is validated.
        outer_steps: Number of outer steps, fewer when the search converges. Defaults to `10`.
        validation_training: Whether the validation loss is taken with the model in training
            mode, as the paper does. Defaults to `False`.
        resample_validation: Which examples `validation_split` holds out: `None` the last ones, as
            in Keras; `"once"` some that are drawn at random, the same in every outer step;
            `"outer_step"` others in every outer step, as in the paper. Defaults to `None`.
        initial_weights: `"fresh"` draws new weights each outer step from the model's
            initialisers; `"same"` restarts from the present weights; a function is called
            and must return a newly made model. Frozen weights are kept. Defaults to
            `"fresh"`.
        differentiation: How hypergradients are computed. All modes give the same ones. `"forward"`
            carries a tangent for each bucket: time grows with their number, memory does not grow
            with the horizon. `"reverse"` goes back over the steps: about four plain trainings for
            any number of buckets, but it keeps states and the batches of a dataset. `"auto"` takes
            the cheaper one that fits. Or a mode with options, such as
            `keras_fds.differentiation.Forward(tangent_chunk_size=10)`. Defaults to `"auto"`.
        adjoint_memory: Bytes that reverse mode may keep, the `memory` of
            `keras_fds.differentiation.Reverse`. Defaults to 1 GiB.
        seed: The validation split, shuffling, fresh weights and dropout of every outer step derive
            from it; a whole number of at least 0. Defaults to one drawn from `numpy.random`.
        divergence_factor: An outer step is given up after ten inner steps in a row with more than
            this many times the loss of the first ones. `None` stops only on NaN or infinity, for a
            run that starts from trained weights, or a loss of your own that may grow. Defaults to
            `20.0`.
        resplit: Deprecated; `True` is `resample_validation="outer_step"`.

    An interrupted search goes on, and ends as if it had not been interrupted, when `fit` is called
    again with `keras_fds.callbacks.Checkpoint` or Keras's `BackupAndRestore` on a model and data
    made as before. The interrupted outer step is run again, or, in forward mode, goes on from a
    checkpoint within it. A dataset that shuffles must have a seed. What it draws with `tf.random`
    in `map` cannot be replayed, nor, in reverse mode, an endless dataset after a training loss that
    was not finite.

    Returns:
        A `keras.callbacks.History`, one entry an outer step, those before an interrupt included.
        `val_loss` is the validation loss whose hypergradients are taken: that of `model.evaluate`
        without the penalties of regularizers (of weights and of activities). What layers add by
        `add_loss` counts.

    Raises:
        ValueError: Before any training, when model, data or horizon do not fit together.

    Example:

    >>> history = keras_fds.fit(
    ...     model, x, y, batch_size=128, epochs=10, outer_steps=10, validation_split=0.05
    ... )
    >>> model.optimizer.schedules["learning_rate"]
    """
    begin = time.monotonic()
    arguments.check_compiled(model)
    arguments.check_callbacks(callbacks)
    arguments.check_validation_freq(validation_freq)
    arguments.check_targets(model, x, y)
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
    )
    horizons = arguments.horizons(epochs, outer_steps, data.num_batches)
    arguments.check_data(model, data, horizons)
    mode, reason = choose_mode(model, data.train, max(horizons), differentiation, adjoint_memory)
    initializer = WeightInitializer(model, mode, initial_weights, data.spec[0])
    settings = {
        "divergence_factor": divergence_factor,
        "seed": seed,
        "batch_size": batch_size,
        "shuffle": shuffle,
        "validation_split": validation_split,
        "resample_validation": resample,
        "validation_training": validation_training,
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
        horizons=horizons,
        start=initializer.start,
        resample=resample == "outer_step",
        settings=settings,
    )
    # Also when it is silent: datasets are looked at, and may share their randomness.
    timing_batches = data.timing_batches()
    progress = None
    if verbose:
        progress = SearchProgress(
            mode,
            reason,
            timing_batches,
            horizons,
            data.num_batches,
            validation_training,
            begin,
        )
    loop = OuterLoop(
        mode,
        data,
        initializer,
        arguments.callback_list(callbacks, model, verbose, outer_steps, horizons[0], progress),
        horizons,
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
    adjoint_memory=None,
    per_step=False,
    dtype=None,
):
    """The hypergradients of one unroll from the model's current weights.

    Trains with the current schedules, with fresh optimizer slots, over the batches of
    `train_data` in the order given; their number is the horizon. Weights, optimizer and
    schedules are as before when it returns.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`.
        train_data: A finite `tf.data.Dataset` or `keras.utils.PyDataset` of batches.
        validation_data: Another one; the validation loss is what `model.evaluate` says of it
            without the penalties of regularizers.
        validation_training: Whether the model is in training mode for the validation loss.
            Defaults to `False`.
        differentiation, adjoint_memory: As in `fit`. `differentiation` defaults to `"forward"`, or
            to `"reverse"` with `per_step`.
        per_step: Whether to return the hypergradient of every single inner step, as if each were a
            bucket of its own; in reverse mode it costs nothing more. Defaults to `False`.
        dtype: `"float64"` trains and differentiates a float64 twin of the model, whatever its own
            type: in float32, long unrolls through batch normalisation lose digits. (Float64
            tangents of a float32 model would not help: the digits are lost in the products.)
            Defaults to `None`, the model's own type.

    Returns:
        `{name: float64 array [num_buckets]}`, derivatives by the hyperparameters' coordinates; a
        bucket's value is the mean over its steps. With `per_step`, `{name: [horizon]}`.

    Raises:
        ValueError: When model and data do not fit together.

    Example:

    >>> keras_fds.hypergradients(model, train_dataset.batch(128), validation_dataset.batch(500))
    {'learning_rate': array([-0.012, -0.007]), 'momentum': array([-0.0004])}
    """
    arguments.check_compiled(model)
    if per_step and differentiation == "forward":
        differentiation = "reverse"
    options = validation_training, differentiation, adjoint_memory, per_step
    if dtype is None:
        return _hypergradients(model, *finite_batches(train_data, validation_data), *options)
    if dtype != "float64":
        raise ValueError(f"`dtype` must be None or 'float64'. Received: dtype={dtype!r}")
    with float64():
        batches = finite_batches(in_float64(train_data), in_float64(validation_data))
        return _hypergradients(float64_twin(model, None, batches[0]), *batches, *options)


def _hypergradients(
    model, train, validation, validation_training, differentiation, adjoint_memory, per_step
):
    horizon, buckets = train.num_batches, model.optimizer.buckets
    arguments.check_buckets(model.optimizer, horizon)
    mode, _ = choose_mode(model, train, horizon, differentiation, adjoint_memory)
    variables = [*model.variables, *mode.outside_variables, *model.optimizer.variables]
    saved = [variable.numpy() for variable in variables]
    try:
        with raising_errors_of(train, validation):
            mode.reset(horizon)
            _, ok = mode.run(train.start(), 0, 0, horizon)
            if not ok:
                warnings.warn("The training loss stopped being finite.", stacklevel=3)
            mode.validate(validation.start(), validation.num_batches, validation_training)
            derivatives = buckets.derivatives(model.optimizer.coordinates)
            if per_step:
                of_steps = buckets.at_steps(derivatives, horizon)
                found = dict(zip(buckets.names, mode.per_step().T))
                return {name: values * of_steps[name] for name, values in found.items()}
            found = buckets.means(mode.hypergradients() * derivatives, horizon)
            unknown = [name for name, values in found.items() if np.isnan(values).any()]
            if unknown and ok:
                warnings.warn(
                    f"The hypergradients of {', '.join(map(repr, unknown))} are not a number. "
                    "check_hypergradients finds the layer or the loss.",
                    stacklevel=3,
                )
            return found
    finally:
        mode.release()
        for variable, value in zip(variables, saved):
            variable.assign(value)
