"""The quickstart with ranges ten times as wide at either end, for every method that searches.

The paper's stress: learning rates from 1e-6 to 100, momentum up to 0.998, weight decay from 1e-7 to
100. Compare with `configs/digits.py`.

    python -m trainers.search --config=configs/digits_wide.py --workdir=runs/digits_wide
    python -m trainers.train --config=configs/digits_wide.py \
        --schedules=runs/digits_wide/schedules.json --workdir=runs/digits_wide-train
    python -m trainers.compare --config=configs/digits_wide.py --workdir=runs/digits_wide-compare

Expected: a minute a search on two cores.
Measured: see docs/results/comparison.md.
"""

from configs import digits

# The ends that the default rule searches between, over ten and times ten; 1 - momentum over ten.
WIDE = {
    "learning_rate": {"min_value": 1e-6, "max_value": 100.0},
    "momentum": {"max_value": 0.998},
    "weight_decay": {"min_value": 1e-7, "max_value": 100.0},
}


def widened(config):
    """A config with the wide ranges."""
    config.hyperparameters = [{**each, **WIDE[each["name"]]} for each in config.hyperparameters]
    return config


def get_config():
    return widened(digits.get_config())
