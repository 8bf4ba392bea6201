"""The methods that configs compare: what each changes in a config.

Each function returns a `{field: value}` for `config.methods`, see `trainers.compare`.
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
