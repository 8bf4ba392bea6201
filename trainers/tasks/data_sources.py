"""MNIST from twenty sources, ten of which are bad, and a small set of right labels.

Nine of ten labels of a bad source are wrong. For `config.task`, see `trainers.task`;
`configs/data_sources.py` learns a weight for each source.
"""

import numpy as np

from trainers.tasks import data_cleaning

SOURCES = 20
BAD = 10
EXAMPLES = 250  # Of each source.
WRONG = 0.9  # Part of a bad source's labels.


def is_bad():
    """Which sources are bad, a bool `[SOURCES]`."""
    return np.random.default_rng(2).permutation(SOURCES) < BAD


def groups():
    """The source of every training example."""
    return np.arange(SOURCES * EXAMPLES) % SOURCES


def load_data():
    drawn = np.random.default_rng(3).random(SOURCES * EXAMPLES) < WRONG
    return data_cleaning.with_wrong_labels(is_bad()[groups()] & drawn)


make_model = data_cleaning.make_model
