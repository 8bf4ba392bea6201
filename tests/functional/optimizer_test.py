"""Every optimizer of Keras: its pure update, the hypergradients of all its numbers, refusals.

`docs/optimizers.md` says the same in a table, which is read here.
"""

import inspect
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_fds
from keras_fds.data.arrays import ArrayBatches, as_arrays
from keras_fds.differentiation.forward import Forward
from keras_fds.differentiation.jacobian_products import jacobian_vector_products
from keras_fds.functional.learnable import numeric_attributes
from keras_fds.functional.optimizer import StatelessOptimizer, build_optimizer
from tests.differentiation import reference

TABLE = pathlib.Path(__file__).parents[2] / "docs" / "optimizers.md"
STEPS = 100
HORIZON = 6
COMMON = {"learning_rate", "weight_decay", "clipvalue", "clipnorm", "global_clipnorm"}
# An active threshold for the gradients of the model below.
BY_VALUE = {"clipvalue": 0.05}
BY_NORM = {"clipnorm": 0.1}
BY_GLOBAL_NORM = {"global_clipnorm": 0.1}


def _adam(**clip):
    rates = [0.05, 0.07, 0.04]
    averages = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 0.01}
    return {"learning_rate": rates, **averages, "weight_decay": 0.1, **clip}


def _sgd(**clip):
    return {"learning_rate": [0.2, 0.3, 0.1], "momentum": 0.6, "weight_decay": 0.1, **clip}


def _rmsprop(**clip):
    averages = {"rho": 0.8, "momentum": 0.5, "epsilon": 0.01}
    return {"learning_rate": [0.02, 0.03, 0.01], **averages, "weight_decay": 0.1, **clip}


def _adafactor(**clip):
    epsilons = {"epsilon_1": 1e-3, "epsilon_2": 0.01}
    others = {"beta_2_decay": -0.8, "clip_threshold": 0.5, "weight_decay": 0.1}
    return {"learning_rate": [0.05, 0.07, 0.04], **epsilons, **others, **clip}


def _without(left_out, values):
    return {name: value for name, value in values.items() if name != left_out}


_FTRL = {
    **{"learning_rate": [0.5, 0.7, 0.4], "learning_rate_power": -0.4, "beta": 0.1},
    **{"l1_regularization_strength": 0.01, "l2_regularization_strength": 0.1},
    **{"l2_shrinkage_regularization_strength": 0.1, "weight_decay": 0.1, **BY_VALUE},
}
_MUON = {
    **{"learning_rate": [0.05, 0.07, 0.04], "momentum": 0.9, "weight_decay": 0.1, "rms_rate": 0.2},
    **{"muon_a": 3.4445, "muon_b": -4.775, "muon_c": 2.0315},
    **{"adam_lr_ratio": 0.5, "adam_beta_1": 0.8, "adam_beta_2": 0.9, "adam_weight_decay": 0.2},
    **{"epsilon": 0.01, **BY_VALUE},
}
_PLAIN_MUON = {"learning_rate": 0.05, "nesterov": False, "ns_steps": 2}
_LION = {"learning_rate": [0.05, 0.07, 0.04], "weight_decay": 0.1}
_ADAGRAD = {"learning_rate": [0.05, 0.07, 0.04], "epsilon": 0.01, "weight_decay": 0.1, **BY_NORM}
_ADADELTA = {
    **{"learning_rate": [0.5, 0.7, 0.4], "rho": 0.8, "epsilon": 0.01, "weight_decay": 0.1},
    **BY_GLOBAL_NORM,
}
_SCHEDULE_FREE = {**_without("beta_1", _adam(**BY_NORM)), "warmup_steps": 3.5}
_COSINE = keras.optimizers.schedules.CosineDecay(0.05, HORIZON)

# name: class, its other arguments, its learned numbers (a list has one number per bucket)
_OF = keras.optimizers
CASES = {
    "paper_sgd": (keras_fds.optimizers.SGD, {}, _sgd(**BY_VALUE)),
    "sgd": (_OF.SGD, {}, _sgd(**BY_NORM)),
    "nesterov": (_OF.SGD, {"nesterov": True}, _sgd(**BY_GLOBAL_NORM)),
    "rmsprop": (_OF.RMSprop, {}, _rmsprop(**BY_VALUE)),
    "centered": (_OF.RMSprop, {"centered": True}, _rmsprop(**BY_NORM)),
    "adam": (_OF.Adam, {}, _adam(**BY_GLOBAL_NORM)),
    "amsgrad": (_OF.Adam, {"amsgrad": True}, _adam(**BY_NORM)),
    "adamw": (_OF.AdamW, {}, _adam(**BY_VALUE)),
    "scheduled": (_OF.Adam, {"learning_rate": _COSINE}, _without("learning_rate", _adam())),
    "called": (_OF.SGD, {"learning_rate": lambda: 0.2}, _without("learning_rate", _sgd())),
    "accumulated": (_OF.SGD, {"gradient_accumulation_steps": 2}, _sgd(**BY_GLOBAL_NORM)),
    "averaged": (_OF.Adam, {"use_ema": True}, {**_adam(), "ema_momentum": 0.8}),
    "overwritten": (
        keras_fds.optimizers.SGD,
        {
            "use_ema": True,
            "ema_overwrite_frequency": 2,
            "gradient_accumulation_steps": 2,
            "loss_scale_factor": 8.0,
        },
        {**_sgd(), "ema_momentum": 0.8},
    ),
    "nadam": (_OF.Nadam, {}, _adam(**BY_GLOBAL_NORM)),
    "adamax": (_OF.Adamax, {}, _adam(**BY_VALUE)),
    "adagrad": (_OF.Adagrad, {}, _ADAGRAD),
    "adadelta": (_OF.Adadelta, {}, _ADADELTA),
    "ftrl": (_OF.Ftrl, {}, _FTRL),
    "lion": (_OF.Lion, {}, _LION),
    "lamb": (_OF.Lamb, {}, _adam(**BY_NORM)),
    "adafactor": (_OF.Adafactor, {}, _adafactor(**BY_GLOBAL_NORM)),
    "absolute_step": (_OF.Adafactor, {"relative_step": False}, _adafactor(**BY_VALUE)),
    "muon": (_OF.Muon, {"ns_steps": 3}, _MUON),
    "plain_muon": (_OF.Muon, _PLAIN_MUON, _without("learning_rate", _MUON)),
    "schedule_free": (_OF.ScheduleFreeAdamW, {}, _SCHEDULE_FREE),
}

# Arguments that are not learned, and why. Those that are numbers are refused by `HyperOptimizer`.
SWITCHES = {
    "name": "no number",
    "exclude_layers": "names",
    "amsgrad": "a switch",
    "centered": "a switch",
    "nesterov": "a switch",
    "relative_step": "a switch",
    "exclude_embeddings": "a switch",
}
REFUSED = {
    ("Optimizer", "use_ema"): "a switch",
    ("Optimizer", "ema_momentum"): "averages no weights",
    ("Optimizer", "ema_overwrite_frequency"): "a whole number",
    ("Optimizer", "loss_scale_factor"): "cancels out",
    ("Optimizer", "gradient_accumulation_steps"): "a whole number",
    ("Adagrad", "initial_accumulator_value"): "only sets the start",
    ("Ftrl", "initial_accumulator_value"): "only sets the start",
    ("Lion", "beta_1"): "only the sign",
    ("Lion", "beta_2"): "only the sign",
    ("Lion", "clipvalue"): "only the sign",
    ("Lion", "clipnorm"): "only the sign",
    ("Lion", "global_clipnorm"): "only the sign",
    ("Muon", "ns_steps"): "number of iterations",
    ("ScheduleFreeAdamW", "beta_1"): "cancels out",
}
WRAPPERS = ("LossScaleOptimizer", "MultiOptimizer")
NEW = {"keras.optimizers.MultiOptimizer"}  # The oldest Keras lacks it.
# Numbers that cannot start at zero.
POSITIVE = {
    ("Adam", "epsilon"),
    ("Adam", "clipnorm"),
    ("Adam", "global_clipnorm"),
    ("Adafactor", "epsilon_1"),
    ("Adafactor", "epsilon_2"),
    ("Adafactor", "clip_threshold"),
    ("Ftrl", "learning_rate"),
    ("Lamb", "learning_rate"),
}
# Numbers of CASES that are also tried at zero, where that is allowed.
ZEROS = {
    "momentum",
    "rho",
    "beta_1",
    "beta_2",
    "adam_beta_1",
    "adam_beta_2",
    "beta",
    "weight_decay",
    "adam_weight_decay",
    "l1_regularization_strength",
    "warmup_steps",
    "l2_regularization_strength",
    "l2_shrinkage_regularization_strength",
}


def first(value):
    return value[0] if isinstance(value, list) else value


def optimizer_of(case, initial=True):
    """The optimizer of a case with its numbers, or with only what the numbers need."""
    kind, arguments, values = CASES[case]
    needed = values if initial else {name: 1.0 for name in values if "clip" in name}
    return kind(**arguments, **{name: first(value) for name, value in needed.items()})


def variables():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=shape).astype("float32"), name=name)
        for name, shape in (("kernel", (4, 3)), ("bias", (3,)))
    ]


# ------------------------------------------------------------------------------ pure updates
@pytest.mark.parametrize("case", CASES)
def test_pure_update_equals_the_optimizers_own_apply(case):
    stock, pure = optimizer_of(case), optimizer_of(case)
    stock_weights, pure_weights = variables(), variables()
    stock.build(stock_weights)
    pure.build(pure_weights)
    stateless = StatelessOptimizer(pure)
    rng = np.random.default_rng(1)
    shapes = [weight.shape for weight in stock_weights]
    gradients = [tf.constant(rng.normal(size=(STEPS, *shape)), "float32") for shape in shapes]

    def stock_step(_, gradients):
        stock.apply(gradients, stock_weights)
        return [weight.value.read_value() for weight in stock_weights]

    def pure_step(state, gradients):
        (weights, slots), counters = stateless.update(
            *state, {}, gradients, [None, None], [True, True]
        )
        return weights, slots, counters

    @tf.function(autograph=False)
    def both():
        weights = [tf.convert_to_tensor(weight) for weight in pure_weights]
        slots, counters = ([tf.convert_to_tensor(v) for v in state] for state in vars_of(stateless))
        pure = tf.scan(pure_step, gradients, (weights, slots, counters), parallel_iterations=1)
        return tf.scan(stock_step, gradients, weights, parallel_iterations=1), pure[0]

    for expected, actual in zip(*both()):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
        assert np.ptp(expected, axis=0).min() > 0
    np.testing.assert_array_equal(pure_weights[0].numpy(), variables()[0].numpy())


def vars_of(stateless):
    return stateless.slots, stateless.counters


@pytest.mark.parametrize("case", CASES)
def test_learned_numbers_take_the_place_of_the_optimizers_own(case):
    values = {name: first(value) for name, value in CASES[case][2].items()}
    stock, pure = optimizer_of(case), optimizer_of(case, initial=False)
    expected, weights = variables(), variables()
    stock.build(expected)
    build_optimizer(pure, list(values), weights)
    stateless = StatelessOptimizer(pure)
    learned = {name: tf.constant(value) for name, value in values.items()}
    gradients = [tf.ones((4, 3)), tf.linspace(-1.0, 1.0, 3)]
    state = [weight.value for weight in weights], *vars_of(stateless)
    for _ in range(3):
        stock.apply(gradients, expected)
        (weights, slots), counters = stateless.update(
            *state, learned, gradients, [None, None], [True, True]
        )
        state = weights, slots, counters
    for actual, right in zip(weights, expected):
        np.testing.assert_allclose(actual, right.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["paper_sgd", "adamw", "muon"])
@pytest.mark.parametrize("by_name", [False, True])
def test_weights_excluded_from_decay_stay_excluded(case, by_name):
    kind = CASES[case][0]
    weights = variables()
    optimizer = keras_fds.HyperOptimizer(
        kind(0.1), [keras_fds.Hyperparameter("weight_decay", 1, 0.5)]
    )
    if by_name:
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    else:
        optimizer.exclude_from_weight_decay(var_list=[weights[1]])
    optimizer.build(weights)
    optimizer.reset_slots()
    stateless = StatelessOptimizer(optimizer.optimizer)
    zeros = [tf.zeros(v.shape) for v in weights]
    start = [v.numpy() for v in weights]
    learned = {"weight_decay": tf.constant(0.5)}
    (new, _), _ = stateless.update(
        [v.value for v in weights], *vars_of(stateless), learned, zeros, [None, None], [True, True]
    )
    optimizer.apply(zeros, weights)
    for kernel, bias in (new, [v.numpy() for v in weights]):
        np.testing.assert_allclose(kernel, 0.95 * start[0], rtol=1e-6)
        np.testing.assert_array_equal(bias, start[1])


def test_keras_forgets_on_save_what_is_excluded_from_decay():
    excluding = keras.optimizers.AdamW()
    excluding.exclude_from_weight_decay(var_names=["bias"])
    assert excluding.get_config().keys() == keras.optimizers.AdamW().get_config().keys(), (
        "Keras now keeps it: mend docs/optimizers.md."
    )


# ---------------------------------------------------------------------------- hypergradients
class Problem:
    """A layer with a zero bias and an input that is always zero, trained by a case's optimizer."""

    def __init__(self, case):
        keras.utils.set_random_seed(2)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="tanh")])
        self.hyperparameters = [
            keras_fds.Hyperparameter(name, np.size(value), value, min_value=-10.0)
            for name, value in CASES[case][2].items()
        ]
        for hyperparameter in self.hyperparameters:
            if first(hyperparameter.initial) > 0:
                hyperparameter.min_value = 1e-9
        model.compile(
            keras_fds.HyperOptimizer(optimizer_of(case, initial=False), self.hyperparameters),
            loss="mse",
        )
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 3))
        x[:, 3] = 0.0
        self.train = ArrayBatches(as_arrays(x, y, None), 8, np.arange(48))
        self.validation = self.train.subset(np.arange(48, 60), 12)
        self.unroll, self.model = Forward().bind(model, self.train.spec), model
        self.optimizer = model.optimizer
        self.unroll.reset(HORIZON)
        self.start = [variable.numpy() for variable in model.variables]
        self.fresh = [variable.numpy() for variable in self.optimizer.variables]
        self.initial = self.optimizer.coordinates
        self.names = np.repeat(self.optimizer.names, [h.num_buckets for h in self.hyperparameters])
        self.lengths = np.concatenate([h.bucket_lengths(HORIZON) for h in self.hyperparameters])

    def run(self, values):
        """The validation loss and the hypergradients, `[total_buckets]`."""
        for variable, value in zip(self.model.variables, self.start):
            variable.assign(value)
        for variable, value in zip(self.optimizer.variables, self.fresh):
            variable.assign(value)
        for tangent in tf.nest.flatten(self.unroll.tangents):
            tangent.assign(tf.zeros_like(tangent))
        self.optimizer.coordinates = values
        assert self.unroll.run(self.train.start(), 0, 0, HORIZON) == (HORIZON, True)
        return reference.measured(self.unroll, self.validation.start(), 1)

    def difference(self, values, position, steps, factors):
        """A finite difference by one value."""
        total = 0.0
        for step, factor in zip(steps, factors):
            moved = np.array(values)
            moved[position] += step
            total += factor * self.run(moved)[0]
        return total / self.lengths[position]

    def central(self, values, position):
        """By Richardson's extrapolation, of fourth order."""
        step = 3e-4 * abs(values[position])
        steps = np.array([-1.0, -0.5, 0.5, 1.0]) * step
        return self.difference(values, position, steps, np.array([1, -8, 8, -1]) / (6 * step))

    def one_sided(self, values, position, step=5e-4):
        """Of fourth order, towards greater values."""
        factors = np.array([-25, 48, -36, 16, -3]) / (12 * step)
        return self.difference(values, position, step * np.arange(5), factors)

    def just_above(self, values, position):
        """The limit of the hypergradient from above, where it is differentiable."""
        moved = np.array(values)
        moved[position] += 1e-13
        return self.run(moved)[1][position]

    def check(self, values, positions, expected_at, noise):
        """Compares the hypergradients with `expected_at(values, position)`, name by name."""
        hypergradients = self.run(values)[1]
        assert np.isfinite(hypergradients).all()
        for name in dict.fromkeys(self.names[positions]):
            mine = [p for p in positions if self.names[p] == name]
            expected = np.array([expected_at(values, p) for p in mine])
            error = np.abs(hypergradients[mine] - expected).max()
            assert error <= 1e-6 * np.abs(expected).max() + noise, (name, error, expected)

    def check_zeros(self, names, expected_at, noise):
        """The same where those numbers are zero that may be."""
        kind = type(self.optimizer.optimizer).__name__
        positions = [
            i for i, n in enumerate(self.names) if n in names and (kind, n) not in POSITIVE
        ]
        values = self.initial.copy()
        values[positions] = 0.0
        self.check(values, positions, expected_at, noise)


@pytest.mark.sweep("paper_sgd", "adamw", "muon")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES)
def test_hypergradients_equal_finite_differences(case):
    problem = Problem(case)
    everything = np.arange(len(problem.names))
    problem.check(problem.initial, everything, problem.central, noise=0.0)
    assert (np.abs(problem.run(problem.initial)[1]) > 1e-7).all(), "A number that does nothing."
    problem.check_zeros({"learning_rate"}, problem.one_sided, noise=1e-11)
    # Some functions of these bend too strongly at zero for differences: a limit instead.
    problem.check_zeros(ZEROS, problem.just_above, noise=1e-11)


@pytest.mark.sweep("paper_sgd", "adamw", "ftrl_from_zero")
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", [*CASES, "ftrl_from_zero"])
def test_derivatives_are_finite_without_gradients(case):
    """Dead weights: nothing has a gradient, and some weights are zero."""
    if case == "ftrl_from_zero":
        optimizer, values = _OF.Ftrl(initial_accumulator_value=0.0), CASES["ftrl"][2]
    else:
        optimizer, values = optimizer_of(case, initial=False), CASES[case][2]
    weights = [keras.Variable(np.ones((3, 2))), keras.Variable(np.zeros(2))]
    build_optimizer(optimizer, list(values), weights)
    stateless = StatelessOptimizer(optimizer)
    learned = {name: tf.constant(first(value), "float64") for name, value in values.items()}
    gradients = [tf.zeros_like(weight) for weight in weights]

    def update(weights, slots, learned, gradients):
        return stateless.update(
            weights, slots, stateless.counters, learned, gradients, [None, None], [True, True]
        )

    primals = ([w.value for w in weights], stateless.slots, learned, gradients)
    primals = tf.nest.map_structure(tf.convert_to_tensor, primals)
    moving = {id(tensor) for tensor in tf.nest.flatten((primals[0], primals[2]))}
    tangents = tf.nest.map_structure(
        lambda t: (tf.ones_like if id(t) in moving else tf.zeros_like)(t)[None], primals
    )
    outputs, _, products = jacobian_vector_products(update, primals, tangents)
    for tensor in tf.nest.flatten((outputs, products)):
        assert np.isfinite(tensor).all()


# ------------------------------------------------------------------------- the whole of Keras
def optimizer_classes():
    exported = vars(keras.optimizers).values()
    kinds = [k for k in exported if inspect.isclass(k) and issubclass(k, _OF.Optimizer)]
    return sorted({k for k in kinds if k is not _OF.Optimizer}, key=lambda kind: kind.__name__)


def covered(kind):
    """The numbers of an optimizer that CASES learn, whatever it is made with."""
    learned = {name for k, _, values in CASES.values() if k is kind for name in values}
    return learned - {"ema_momentum"}


@pytest.mark.parametrize("kind", [*optimizer_classes(), keras_fds.optimizers.SGD])
def test_every_argument_of_every_optimizer_is_covered(kind):
    if kind.__name__ in WRAPPERS:
        return
    assert covered(kind), f"A new optimizer: add {kind.__name__} to CASES."
    parameters = inspect.signature(kind.__init__).parameters.values()
    names = {p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    refused = {name for owner, name in REFUSED if owner in (kind.__name__, "Optimizer")}
    left = names - covered(kind) - COMMON - refused - set(SWITCHES)
    assert not left, f"Learn them in a case of CASES, or add them to REFUSED or SWITCHES: {left}"
    known = set(numeric_attributes(kind())) | COMMON - refused
    assert known == covered(kind) | COMMON - refused


def test_every_clipping_and_every_switch_is_covered():
    learned = {name for _, _, values in CASES.values() for name in values}
    assert learned >= COMMON
    switched = {name for _, arguments, _ in CASES.values() for name in arguments}
    assert switched >= {n for n, reason in SWITCHES.items() if reason == "a switch"} - {
        "exclude_embeddings"  # A choice of weights between two updates that both are covered.
    }


def test_the_table_in_the_documents_is_true():
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            kind, numbers, remarks = (cell.strip() for cell in line.strip("|").split("|"))
            rows[kind.strip("`")] = set(numbers.replace("`", "").split(", ")) - {"none"}, remarks
    kinds = {f"keras.optimizers.{k.__name__}": k for k in optimizer_classes()}
    kinds["keras_fds.optimizers.SGD"] = keras_fds.optimizers.SGD
    assert rows.keys() - NEW == kinds.keys() - NEW
    for name in kinds:
        numbers, remarks = rows[name]
        assert numbers == covered(kinds[name]) - COMMON, name
        for owner, refused in [*REFUSED, *POSITIVE]:
            if owner == kinds[name].__name__ and owner != "Adam":
                assert f"`{refused}`" in remarks, (name, refused)
        assert (kinds[name].__name__ in WRAPPERS) == remarks.startswith("refused"), name


# -------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("owner", "name"), REFUSED)
def test_a_number_that_cannot_be_learned_is_refused(owner, name):
    kind = _OF.SGD if owner == "Optimizer" else getattr(_OF, owner)
    message = f"'{name}' of {kind.__name__} cannot be learned.*{REFUSED[owner, name]}"
    hyperparameter = keras_fds.Hyperparameter(name, 1, 0.5)
    with pytest.raises(ValueError, match=message):
        keras_fds.HyperOptimizer(kind(), [hyperparameter])


@pytest.mark.parametrize(("owner", "name"), sorted(POSITIVE))
def test_a_number_that_must_stay_positive_is_refused_at_zero(owner, name):
    optimizer = getattr(_OF, owner)(**({name: 1.0} if "clip" in name else {}))
    with pytest.raises(ValueError, match=f"'{name}' of {owner} must stay above 0"):
        keras_fds.HyperOptimizer(optimizer, [keras_fds.Hyperparameter(name, 1, 0.0)])
    for arguments in ({"min_value": 1e-6}, {"scale": "log"}):
        hyperparameter = keras_fds.Hyperparameter(name, 1, 0.1, **arguments)
        keras_fds.HyperOptimizer(optimizer, [hyperparameter])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipvalue", r"it is None. Give it a number .*SGD\(clipvalue=1.0\)"),
        ("nesterov", "SGD has no hyperparameter 'nesterov'.*learning_rate, momentum"),
    ],
)
def test_what_is_not_a_number_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        keras_fds.HyperOptimizer(_OF.SGD(), [keras_fds.Hyperparameter(name)])


def test_beta_1_of_schedule_free_adamw_cancels_out_in_keras():
    ends = []
    for beta_1 in (0.5, 0.9):
        weights = variables()
        optimizer = _OF.ScheduleFreeAdamW(0.1, beta_1=beta_1)
        for _ in range(3):
            optimizer.apply([tf.ones((4, 3)), tf.linspace(-1.0, 1.0, 3)], weights)
        ends.append(weights[0].numpy())
    message = "Keras has mended it: take beta_1 out of learnable._REFUSED and docs/optimizers.md."
    np.testing.assert_allclose(*ends, rtol=1e-5, atol=1e-6, err_msg=message)


def test_lion_passes_no_derivative_of_the_models_numbers():
    rate = keras_fds.Hyperparameter("dense.learning_rate_multiplier", 1, 1.0)
    keras_fds.HyperOptimizer(_OF.Lion(), [rate])
    penalty = keras_fds.Hyperparameter("dense.kernel_regularizer.l2")
    with pytest.raises(ValueError, match="with Lion: only the sign"):
        keras_fds.HyperOptimizer(_OF.Lion(), [penalty])


def test_a_number_that_no_step_uses_is_refused_before_any_compute():
    """Only the trace of a step tells: this model has no weights for Muon's own update."""
    model = keras.Sequential([keras.Input((2, 2)), keras.layers.Conv1D(1, 1)])
    hyperparameter = keras_fds.Hyperparameter("rms_rate", 1, 0.2)
    model.compile(keras_fds.HyperOptimizer(_OF.Muon(), [hyperparameter]), loss="mse")
    data = tf.data.Dataset.from_tensors((tf.ones((1, 2, 2)), tf.ones((1, 2, 1))))
    with pytest.raises(ValueError, match="'rms_rate' cannot be learned: no training step uses it"):
        keras_fds.hypergradients(model, data, data)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: _OF.LossScaleOptimizer(_OF.SGD()), "updates weights itself"),
        pytest.param(
            lambda: _OF.MultiOptimizer(_OF.OptimizerMap(_OF.SGD())),
            "learning_rate_multiplier",
            marks=pytest.mark.skipif(not hasattr(_OF, "MultiOptimizer"), reason="not in Keras"),
        ),
    ],
)
def test_optimizers_that_cannot_be_wrapped_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        keras_fds.HyperOptimizer(build(), [])
