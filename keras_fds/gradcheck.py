"""`check_hypergradients`: hypergradients against finite differences, and the layer at fault."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_fds.data import finite_batches, plain, raising_errors_of, unpack
from keras_fds.differentiation import Forward, Reverse, hessian_error, layer_error
from keras_fds.functional import float64, float64_twin, in_float64
from keras_fds.internals import keras_layers, keras_models
from keras_fds.search import check_buckets, check_compiled, check_one_replica, settle

# Relative steps, tried in this order until a bucket passes: small ones for curvature and kinks,
# large ones for layers that compute in float32.
_STEPS = (1e-4, 1e-5, 1e-6, 1e-3, 1e-2)
# A difference proves a hypergradient wrong when its uncertainty is below this share of it.
_TRUSTED = 0.1
_SMALLEST_VALUE = 0.1  # Smaller coordinates are moved as if they were this large.
_SUSPECT = 1e-5
_MOST_OF_A_VECTOR = 12  # Values of a vector that are compared: half the largest, half any.
_RIGHT = "right"
_WRONG = "WRONG"
_NOT_SMOOTH = "not smooth here"


@dataclasses.dataclass(frozen=True)
class HypergradientCheck:
    """What `check_hypergradients` found; prints as a table.

    Args:
        passed: Whether every bucket is right.
        forward: `{name: float64 [num_buckets]}`, the hypergradients as keras_fds computes them.
        finite_differences: The same, by central finite differences.
        errors: Their difference relative to the hyperparameter's largest one, same form.
        verdicts: `{name: list of str}`: "right", "WRONG" or "not smooth here" (the validation
            loss has a kink so near that finite differences cannot tell).
        suspects: `{str: float}`: layers, regularizers and losses whose derivatives, first or
            second, are wrong, with their relative errors; looked for only when something is wrong.
        positions: `{name: int64 array}`: which of a hyperparameter's values were compared, counted
            bucket by bucket. All, but of a long vector twelve: those with the largest
            hypergradients and random ones. Defaults to `None`, all.

    Example:

    >>> check = keras_fds.check_hypergradients(model, train_data, validation_data)
    >>> assert check.passed, check
    """

    passed: bool
    forward: dict[str, np.ndarray]
    finite_differences: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    verdicts: dict[str, list[str]]
    suspects: dict[str, float]
    positions: dict[str, Any] | None = None

    def __str__(self):
        width = max(14, *map(len, self.forward))
        lines = [f"{'hyperparameter':{width}}  bucket       forward   differences    error"]
        for name, forward in self.forward.items():
            buckets = range(len(forward)) if self.positions is None else self.positions[name]
            columns = forward, self.finite_differences[name], self.errors[name], self.verdicts[name]
            for bucket, value, expected, error, verdict in zip(buckets, *columns):
                lines.append(
                    f"{name:{width}}  {bucket:6}  {value:12.5e}  {expected:12.5e}  "
                    f"{error:.1e}  {verdict}"
                )
        return "\n".join([*lines, *self._conclusion()])

    def _conclusion(self):
        verdicts = [each for verdicts in self.verdicts.values() for each in verdicts]
        if self.passed:
            return ["The hypergradients are right."]
        lines = []
        if _NOT_SMOOTH in verdicts:
            lines.append(
                "Where the loss is not smooth, finite differences cannot tell: try other batches, "
                "fewer batches, or other values."
            )
        if _WRONG in verdicts and not self.suspects:
            lines.append(
                "Some hypergradients are wrong, though each layer by itself is right: look for "
                "tf.stop_gradient or tf.custom_gradient in `compute_loss` and in the optimizer."
            )
        for suspect, error in self.suspects.items():
            lines.append(
                f"At fault: the {suspect}; its derivatives are off by {error:.1e}. Look in it for "
                "tf.stop_gradient, tf.custom_gradient or rounding. Write it without them, or move "
                "it in front of the trainable layers."
            )
        return lines


def check_hypergradients(
    model: keras.Model,
    train_data: Any,
    validation_data: Any,
    make_model: Callable[[], keras.Model] | None = None,
    validation_training: bool = False,
    tolerance: float = 1e-5,
    verbose: bool = True,
) -> HypergradientCheck:
    """Checks a model's hypergradients against finite differences, as torch's `gradcheck` does.

    A layer with a wrong second derivative makes hypergradients silently wrong. The check finds and
    names such a layer. It computes in float64 on a twin of the model: the model itself, its
    optimizer, Keras's dtype settings and random seeds stay unchanged. Training starts from the
    present weights and schedules, with fresh optimizer slots. It costs four to twelve unrolls per
    bucket: a few batches are enough.

    Args:
        model: A `keras.Model` compiled with a `keras_fds.HyperOptimizer`. If it is not built
            yet, it is checked with newly drawn weights.
        train_data: A finite `tf.data.Dataset` of batches, such as `dataset.take(5)`. The number
            of batches is the horizon.
        validation_data: A finite `tf.data.Dataset` of batches.
        make_model: A function that returns a newly made model, compiled or not, for a model
            that Keras cannot rebuild from its config. It is called while Keras's default dtype
            policy is float64. Defaults to `None`.
        validation_training: As for `keras_fds.hypergradients`. Defaults to `False`.
        tolerance: Largest error, relative to the hyperparameter's largest hypergradient, that
            passes. Defaults to `1e-5`.
        verbose: Whether to print the result. Defaults to `True`.

    Returns:
        A `HypergradientCheck`: `passed`, and what was compared.

    Raises:
        ValueError: When model and data do not fit together, the model cannot be rebuilt, the
            training loss stops being finite, or a layer is not twice differentiable.

    Example:

    >>> keras_fds.check_hypergradients(model, train_dataset.take(5), validation_dataset.take(2))
    hyperparameter  bucket       forward   differences    error
    learning_rate        0  -1.23450e-02  -1.23450e-02  3.1e-10  right
    The hypergradients are right.
    """
    check_compiled(model)
    check_one_replica(model, "check_hypergradients")
    if not model.optimizer.hyperparameters:
        raise ValueError(
            "The model's HyperOptimizer learns no hyperparameter: nothing to check. Give it "
            "`hyperparameters`."
        )
    with float64(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* stops gradients")  # The check measures their effect.
        train, validation = finite_batches(_cached(train_data), _cached(validation_data))
        check_buckets(model.optimizer, train.num_batches)
        twin = float64_twin(model, make_model, train)
        settle(twin, train)
        runs = _Runs(twin, train, validation, validation_training)
        with raising_errors_of(train, validation):
            chosen, *found = _compared(runs, tolerance)
        verdicts = found[-1]
        is_wrong = _WRONG in verdicts
        suspects = _suspects(twin, next(iter(train.dataset))) if is_wrong else {}
        runs.restore()  # The twin is kept for the next check.
        runs.mode.release()
    buckets = twin.optimizer.buckets
    owners = [buckets.owners[chosen] == i for i in range(len(buckets.names))]
    forward, differences, errors, verdicts, chosen = (
        {name: np.array(column)[own] for name, own in zip(buckets.names, owners)}
        for column in (*found[:-1], np.array(verdicts, object), chosen)
    )
    firsts = {name: np.argmax(buckets.owners == i) for i, name in enumerate(buckets.names)}
    result = HypergradientCheck(
        passed=all(verdict == _RIGHT for verdict in found[-1]),
        forward=forward,
        finite_differences=differences,
        errors=errors,
        verdicts={name: list(each) for name, each in verdicts.items()},
        suspects=suspects,
        positions={name: positions - firsts[name] for name, positions in chosen.items()},
    )
    if verbose:
        print(result)
    return result


def _cached(dataset):
    """The dataset in float64, the same batches in every pass."""
    if not isinstance(dataset, tf.data.Dataset):
        raise ValueError(
            "The data must be finite tf.data.Datasets of batches, such as "
            "tf.data.Dataset.from_tensor_slices((x, y)).batch(32).take(5). "
            f"Received: {type(dataset).__name__}"
        )

    return in_float64(dataset).cache()


# ----------------------------------------------------------------------------- finite differences
class _Runs:
    """Unrolls of a model from the same start, as a function of the coordinates."""

    def __init__(self, model, train, validation, training):
        # Forward mode carries a tangent for every element of a vector.
        has_vectors = model.optimizer.buckets.in_vectors.any()
        mode = Reverse().bind(model, train.spec) if has_vectors else None
        if mode is None or mode.supports(train):
            mode = Forward().bind(model, train.spec)
            mode.check_memory(train, train.num_batches)
        self.mode, self.training = mode, training
        self.train, self.validation = train, validation
        self.optimizer, self.buckets = model.optimizer, model.optimizer.buckets
        self.variables = [*model.variables, *self.mode.outside_variables]
        self.start = [variable.numpy() for variable in self.variables]
        self.coordinates = self.optimizer.coordinates
        self.lengths = self.buckets.lengths(train.num_batches)

    def __call__(self, coordinates):
        """The validation loss; `None` when training breaks down."""
        self.restore()
        self.optimizer.coordinates = coordinates
        self.mode.reset(self.train.num_batches)
        _, ok = self.mode.run(self.train.start(), 0, 0, self.train.num_batches)
        loss, _ = self.mode.validate(
            self.validation.start(), self.validation.num_batches, self.training
        )
        return loss if ok and np.isfinite(loss) else None

    def restore(self):
        """Puts the variables of the model back to their start."""
        for variable, value in zip(self.variables, self.start):
            variable.assign(value)

    def hypergradients(self):
        """The hypergradients of the last call, means over the steps of each bucket."""
        derivatives = self.buckets.derivatives(self.optimizer.coordinates)
        return self.mode.hypergradients() * derivatives / self.lengths

    def difference(self, bucket, step, loss):
        """`(derivative, uncertainty)` by a bucket's coordinate, from two step sizes.

        `None` when training breaks down at one of the points.
        """
        slopes = []
        bends = []
        for size in (step, step / 2):
            moved = []
            for sign in (1, -1):
                coordinates = self.coordinates.copy()
                coordinates[bucket] += sign * size
                moved.append(self(coordinates))
            if None in moved:
                return None
            slopes.append((moved[0] - moved[1]) / (2 * size))
            bends.append(abs(moved[0] - 2 * loss + moved[1]) / size)
        # Right and left slope of a smooth loss differ by half as much at half the step.
        kink = max(0.0, bends[1] - 0.75 * bends[0])
        derivative = (4 * slopes[1] - slopes[0]) / 3
        uncertainty = abs(slopes[1] - slopes[0]) + kink
        return derivative / self.lengths[bucket], uncertainty / self.lengths[bucket]


def _chosen(buckets, hypergradients):
    """The numbers of the values that are compared: all, but of a long vector only some."""
    chosen, generator = [], np.random.default_rng(0)
    for i, h in enumerate(buckets.hyperparameters):
        own = np.flatnonzero(buckets.owners == i)
        if h.is_vector and len(own) > _MOST_OF_A_VECTOR:
            half = _MOST_OF_A_VECTOR // 2
            by_size = own[np.argsort(-np.abs(hypergradients[own]))]
            own = np.sort([*by_size[:half], *generator.choice(by_size[half:], half, replace=False)])
        chosen.append(own)
    return np.concatenate(chosen)


def _compared(runs, tolerance):
    """`(chosen, forward, differences, errors, verdicts)`, one entry per compared value each."""
    loss = runs(runs.coordinates)
    forward = runs.hypergradients()
    if loss is None:
        raise ValueError(
            "The loss stops being finite with these schedules: nothing to compare. Set smaller "
            "values, or pass other batches."
        )
    steps = np.maximum(np.abs(runs.coordinates), _SMALLEST_VALUE)
    # Below this size rounding alone exceeds the tolerance.
    rounding = 10 * np.finfo("float64").eps * abs(loss) / (_STEPS[0] * steps.min() * tolerance)
    # Taken from the hypergradients: a difference across a kink can have any size.
    scales = np.concatenate(
        [
            np.full(piece.size, max(np.nanmax(piece, initial=0.0), rounding))
            for piece in runs.buckets.split(np.abs(forward)).values()
        ]
    )
    differences, errors, verdicts = np.zeros_like(forward), np.zeros_like(forward), []
    chosen = _chosen(runs.buckets, forward)
    for k in chosen:
        tried = []
        for step in _STEPS:
            found = runs.difference(k, step * steps[k], loss)
            if found is not None:
                tried.append(found)
                if abs(found[0] - forward[k]) <= tolerance * scales[k]:
                    break
        if not tried:
            differences[k] = errors[k] = np.nan  # Training breaks down next to this value.
            verdicts.append(_NOT_SMOOTH)
            continue
        differences[k], _ = min(tried, key=lambda each: abs(each[0] - forward[k]))
        errors[k] = abs(differences[k] - forward[k]) / scales[k]
        settled = any(
            uncertainty <= max(tolerance * scales[k], _TRUSTED * abs(derivative - forward[k]))
            for derivative, uncertainty in tried
        )
        wrong = _WRONG if settled else _NOT_SMOOTH
        verdicts.append(_RIGHT if errors[k] <= tolerance else wrong)
    runs(runs.coordinates)
    return chosen, forward[chosen], differences[chosen], errors[chosen], verdicts


# ------------------------------------------------------------------------------ who is at fault
def _suspects(model, batch):
    """`{description: error}` of the layers, regularizers and losses with wrong derivatives."""
    batch = plain(unpack(batch))
    generator = np.random.default_rng(0)
    with keras_layers.twice_differentiable(), keras_layers.recorded_calls(model) as recorded:
        outputs = keras_models.call_model(model, _state(model), batch[0], training=True).outputs
    calls = {id(layer): (inputs, keywords) for layer, inputs, keywords, _ in recorded}
    found, faulty = {}, set()

    def record(description, error, owner=None):
        if error > _SUSPECT:
            found[description] = error
            faulty.add(id(owner))

    for layer in reversed(keras_layers.layers_of(model)):
        for variable in layer.trainable_variables if id(layer) in calls else ():
            if variable.regularizer is not None and id(variable) not in faulty:

                def penalty(weight, variable=variable):
                    return [variable.regularizer(weight)], []

                error = hessian_error(penalty, (variable.value,), generator)
                record(f"regularizer of {variable.path!r}", error, variable)
        parts = {id(part) for part in (*keras_layers.layers_of(layer), *layer.trainable_variables)}
        if id(layer) in calls and not parts & faulty and not keras_layers.is_composition(layer):
            inputs, keywords = calls[id(layer)]
            error = layer_error(layer, *inputs, **keywords)
            record(keras_layers.named(layer), error, layer)

    def loss(*outputs):
        outputs = tf.nest.pack_sequence_as(structure, outputs)
        nothing = [tf.zeros((), "float64")]
        loss, _ = keras_models.compiled_loss(model, _state(model), batch, outputs, nothing, True)
        return [loss], []

    structure = outputs
    name = keras_models.name_of_loss(model.loss)
    record(f"loss {name}", hessian_error(loss, tuple(tf.nest.flatten(outputs)), generator))
    return found


def _state(model):
    return [(variable, variable.value) for variable in model.variables]
