"""Which numbers of an optimizer can be learned, and why the others cannot.

`check_used` refuses those that only the trace of a training step shows to be unused.
"""

from keras_fds.functional.learned_numbers import EXAMPLE_WEIGHTS, is_multiplier, is_number
from keras_fds.internals import keras_optimizers

_NO_UPDATE = ("HyperOptimizer", "LossScaleOptimizer", "MultiOptimizer")

_START = "it only sets the start of the optimizer's slots, which no training step computes"
_COUNT = "it is a number of iterations, and no derivative passes through a whole number"
_SIGN = "only the sign of the averaged gradient enters the update, whose derivative is zero"
_CANCELS = "it cancels out of the update as Keras computes it with TensorFlow"
_WHOLE = "it is a whole number"
_SCALES = "it cancels out: it scales the loss, and the gradients back"
_NO_AVERAGE = "the optimizer averages no weights: make it with `use_ema=True`"

# By class, subclasses included: numbers that cannot be learned.
_REFUSED = {
    "Optimizer": {
        **dict.fromkeys(("gradient_accumulation_steps", "ema_overwrite_frequency"), _WHOLE),
        "loss_scale_factor": _SCALES,
        "use_ema": "it is a switch",
        "ema_momentum": _NO_AVERAGE,
    },
    "Adagrad": {"initial_accumulator_value": _START},
    "Ftrl": {"initial_accumulator_value": _START},
    "Lion": dict.fromkeys(("beta_1", "beta_2", "clipnorm", "clipvalue", "global_clipnorm"), _SIGN),
    "Muon": {"ns_steps": _COUNT},
    "ScheduleFreeAdamW": {"beta_1": _CANCELS},
}

_DIVISOR = "the update divides by it"
_EPSILON = "it keeps the update finite where a weight or its gradient is zero"
# By class, subclasses included: numbers whose update or derivative is not finite at zero.
_POSITIVE = {
    "Optimizer": {
        **dict.fromkeys(("clipnorm", "global_clipnorm"), _DIVISOR),
        **dict.fromkeys(("epsilon", "epsilon_1", "epsilon_2"), _EPSILON),
    },
    "Adafactor": {"clip_threshold": _DIVISOR},
    "Ftrl": {"learning_rate": _DIVISOR},
    "Lamb": {
        "learning_rate": "a step is scaled by the norm of the weights, so that its derivative "
        "jumps at rate zero for weights that start at zero, as biases do"
    },
}


def _classes(optimizer):
    return [kind.__name__ for kind in type(optimizer).__mro__]


def _by_class(table, optimizer):
    return {
        name: reason for kind in _classes(optimizer) for name, reason in table.get(kind, {}).items()
    }


def _refused(optimizer):
    """Names of the numbers of a Keras optimizer that cannot be learned, and why."""
    found = _by_class(_REFUSED, optimizer)
    if optimizer.use_ema:
        del found["ema_momentum"]
    return found


def numeric_attributes(optimizer):
    """Names of the numbers of a Keras optimizer that can be learned."""
    refused = _refused(optimizer)
    return [
        name
        for name, value in keras_optimizers.config_of(optimizer).items()
        if name not in refused
        and (name == "learning_rate" or hasattr(optimizer, name))
        and (name in ("learning_rate", "weight_decay") or is_number(value))
    ]


def check_optimizer(optimizer):
    """Raises a `ValueError` for an optimizer that a `HyperOptimizer` cannot wrap."""
    if set(_classes(optimizer)) & set(_NO_UPDATE):
        raise ValueError(
            "`optimizer` must be an optimizer that updates weights itself, such as "
            "keras_fds.optimizers.SGD(), keras.optimizers.SGD() or keras.optimizers.Adam(); for "
            "another rate of some layers learn '<layer>.learning_rate_multiplier'. "
            f"Received: optimizer={optimizer}"
        )


def check_hyperparameter(optimizer, hyperparameter):
    """Raises a `ValueError` for a hyperparameter that cannot be learned with an optimizer."""
    name, kind = hyperparameter.name, type(optimizer).__name__
    if "." in name or name in EXAMPLE_WEIGHTS:
        if "Lion" in _classes(optimizer) and not is_multiplier(name):
            raise ValueError(
                f"{name!r} cannot be learned with {kind}: {_SIGN}. Use another optimizer."
            )
        return
    if hyperparameter.is_vector:
        raise ValueError(
            f"{name!r} of {kind} is one number, which cannot be learned as a vector. Leave `shape` "
            f"out. Received: shape={hyperparameter.shape}"
        )
    known = numeric_attributes(optimizer)
    _check_known(kind, name, known, _refused(optimizer), optimizer)
    if name == "learning_rate" and keras_optimizers.has_learning_rate_schedule(optimizer):
        raise ValueError(
            "The wrapped optimizer's `learning_rate` is a schedule already; pass a float "
            "(the learned schedule replaces it), or do not learn 'learning_rate'."
        )
    reason = _by_class(_POSITIVE, optimizer).get(name)
    if reason and hyperparameter.scale == "linear" and hyperparameter.min_value <= 0:
        raise ValueError(
            f"{name!r} of {kind} must stay above 0: {reason}. Give its Hyperparameter "
            "`initial` and `min_value` above 0, or scale='log'. "
            f"Received: initial={hyperparameter.initial}, min_value={hyperparameter.min_value}"
        )


def _check_known(kind, name, known, refused, optimizer):
    can_be = f"{kind} has {', '.join(sorted(known))} that can be learned."
    if name in refused:
        raise ValueError(f"{name!r} of {kind} cannot be learned: {refused[name]}. {can_be}")
    if name in known:
        return
    if name in keras_optimizers.config_of(optimizer) and getattr(optimizer, name, 0) is None:
        raise ValueError(
            f"{name!r} of {kind} cannot be learned: it is None. Give it a number when you make "
            f"the optimizer, such as {kind}({name}=1.0); the learned schedule replaces it. {can_be}"
        )
    raise ValueError(
        f"{kind} has no hyperparameter {name!r} that can be learned; it has "
        f"{', '.join(sorted(known))}."
    )
