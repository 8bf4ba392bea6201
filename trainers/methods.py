"""The methods that configs compare: what each changes in a config.

Each function returns a `{field: value}` for `config.methods`, see `trainers.compare`; `rivals`
returns all methods for a config that names none.
"""

import math

# What the paper's rule needs and others do not.
_OWN_RULE = {"outer_steps": None, "tangent_clipvalue": None, "differentiation": "auto"}
# One held-out part, and a validation loss as it will be used.
_PLAIN_VALIDATION = {"resample_validation": "once", "validation_training": False}
_CONSTANTS = ({"name": "momentum"}, {"name": "weight_decay"})


def default_rule(epochs, budget=10.0, constants=_CONSTANTS):
    """The library's default outer rule, with seven knots of the learning rate.

    Args:
        epochs: The horizon.
        budget: In plain trainings. Defaults to `10.0`.
        constants: Arguments of the other hyperparameters. Defaults to momentum and weight decay.
    """
    rate = {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear"}
    return {
        **_OWN_RULE,
        **_PLAIN_VALIDATION,
        "epochs": (epochs,),
        "budget": budget,
        "hyperparameters": (rate, *constants),
        "outer": {"name": "BayesianOptimization"},
    }


def greedy(epochs, hyperparameters, method="hd", **options):
    """One training in which the hyperparameters move, see `trainers.online`.

    Args:
        epochs: The horizon.
        hyperparameters: Arguments of what is learned, a tuple.
        method: `"hd"`, `"rtho"` or `"marthe"`. Defaults to `"hd"`.
        **options: Other fields of the config.
    """
    return {
        **_OWN_RULE,
        **_PLAIN_VALIDATION,
        "method": method,
        "epochs": (epochs,),
        "hyperparameters": hyperparameters,
        **options,
    }


def black_box(epochs, budget, method="tpe", space="decay", **options):
    """Optuna in place of hypergradients, see `trainers.black_box`.

    Args:
        epochs: The horizon.
        budget: In plain trainings.
        method: `"random"`, `"tpe"`, `"gp"` or `"cma_es"`. Defaults to `"tpe"`.
        space: `"decay"` or `"values"`. Defaults to `"decay"`.
        **options: Other fields of the config.
    """
    return {
        **_OWN_RULE,
        **_PLAIN_VALIDATION,
        "method": method,
        "space": space,
        "epochs": (epochs,),
        "budget": budget,
        **options,
    }


def decay_grid(epochs, shape="cosine", num_knots=20, **values):
    """A tuned decay of the learning rate, the best point of a grid.

    Args:
        epochs: The horizon.
        shape: `"cosine"` or `"linear"`. Defaults to `"cosine"`.
        num_knots: Of the learning rate, on straight lines. Defaults to `20`: within 0.2% of the
            peak of a cosine.
        **values: For every hyperparameter the values to try, a tuple.
    """
    rate = {"name": "learning_rate", "num_buckets": num_knots, "interpolation": "linear"}
    constants = tuple({"name": name} for name in values if name != "learning_rate")
    return {
        **_OWN_RULE,
        **_PLAIN_VALIDATION,
        "epochs": (epochs,),
        "budget": float(math.prod(map(len, values.values()))),
        "hyperparameters": (rate, *constants),
        "outer": {"name": "DecayGrid", "shape": shape, **values},
    }


def schedule_free(epochs, warmup_steps=50, **values):
    """AdamW without a schedule, by averages of its weights; its constants by a grid.

    Keras's optimizer for TensorFlow trains and validates at the average itself: there beta_1
    cancels out of its update, so it is a constant of no effect.

    Args:
        epochs: The horizon.
        warmup_steps: Steps in which the learning rate rises. Defaults to `50`.
        **values: For every hyperparameter the values to try, a tuple.

    Reference: Defazio et al., "The road less scheduled" (2024).
    """
    return {
        **decay_grid(epochs, "constant", num_knots=2, **values),
        "optimizer": {
            "name": "keras.optimizers.ScheduleFreeAdamW",
            "warmup_steps": warmup_steps,
        },
    }


# What grids try: peaks of the learning rate for SGD and for others, and constants.
_PEAKS = (0.01, 0.03, 0.1, 0.3), (1e-3, 3e-3, 1e-2, 3e-2)
_DECAYS = (0.0, 5e-4, 5e-3), (0.0, 0.01, 0.1)
_TYPICAL = {"momentum": (0.9,), "beta_1": (0.9,), "beta_2": (0.99,)}
_MOST_VALUES = 200  # Of vectors, that a black box chooses.


def rivals(config, in_time=False):
    """This library's search and every rival of it, `{name: {field: value}}`.

    - `learned`: the config as it is; `learned_tenth`, within a time: in a tenth of it;
      `learned_schedules`: only the optimizer's numbers, where the config learns others too.
    - `cosine`, `linear`: the best of a grid of decays; `schedule_free`: of a grid of constants.
    - `random`, with twice the budget, `tpe` with Hyperband, `gp` and `cma_es`: Optuna's samplers,
      over an expert's few numbers (`_decay`) and over all values of the config (`_values`).
    - `hd`: one training in which the optimizer's numbers move.

    Args:
        config: A `ml_collections.ConfigDict` like those of `configs/`. Its `epochs` and `budget`
            hold for all; with `outer_steps` black boxes get the `budget`.
        in_time: Whether a time limits the methods. Defaults to `False`.

    Example:

    >>> list(rivals(configs.digits.get_config()))[:4]
    ['learned', 'cosine', 'linear', 'schedule_free']
    """
    epochs = config.epochs[-1] if isinstance(config.epochs, (tuple, list)) else config.epochs
    budget = config.budget or 10.0
    learned = [dict(each) for each in config.hyperparameters]
    expert = tuple(each for each in learned if _is_of_optimizer(each["name"]))
    if not any(each["name"] == "learning_rate" for each in expert):
        rate = {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear"}
        expert = (rate, *expert)
    is_sgd = config.optimizer.name.endswith("SGD")
    constants = {**_TYPICAL, "weight_decay": _DECAYS[not is_sgd]}
    names = [each["name"] for each in expert]
    grid = {
        "learning_rate": _PEAKS[not is_sgd],
        **{name: constants[name] for name in names if name in constants},
    }
    found = {"learned": {}}
    if in_time:
        found["learned_tenth"] = {"budget": budget / 10}
    if len(learned) != len(expert):
        found["learned_schedules"] = {
            **_OWN_RULE,
            **_PLAIN_VALIDATION,
            "epochs": (epochs,),
            "budget": budget,
            "hyperparameters": expert,
            "outer": {"name": "BayesianOptimization"},
        }
    for shape in ("cosine", "linear"):
        found[shape] = decay_grid(epochs, shape, **grid)
    found["schedule_free"] = schedule_free(epochs, learning_rate=_PEAKS[1], weight_decay=_DECAYS[1])
    for method in ("random", "tpe", "gp", "cma_es"):
        options = {"hyperband": True} if method == "tpe" else {}
        mine = 2 * budget if method == "random" else budget
        found[f"{method}_decay"] = black_box(
            epochs, mine, method, "decay", hyperparameters=expert, **options
        )
        if _is_countable(config, learned):
            found[f"{method}_values"] = black_box(epochs, mine, method, "values", **options)
    numbers = tuple({"name": name} for name in names)
    found["hd"] = greedy(epochs, numbers)
    return found


def _is_of_optimizer(name):
    return "." not in name and name not in ("sample_weight", "class_weight")


def _is_countable(config, learned):
    """Whether black boxes can choose all values: no long vectors, none of unknown length."""
    from trainers import task

    for each in learned:
        if each["name"] == "sample_weight" and config.get("task"):
            groups = task.groups(config.task)
            if groups is None or groups.max() >= _MOST_VALUES:
                return False
        elif each["name"] in ("sample_weight", "class_weight") or each.get("each"):
            return False
    return True
