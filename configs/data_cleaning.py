"""Data cleaning: a weight for each of 5,000 examples, half of whose labels are wrong.

A perceptron on MNIST, Adam at its usual rate, 1,000 right labels for validation. No rival can
choose 5,000 values: they learn schedules, with all examples.

    python -m trainers.prepare_data --dataset=mnist
    python -m trainers.search --config=configs/data_cleaning.py --workdir=runs/data_cleaning
    python -m trainers.train --config=configs/data_cleaning.py \
        --schedules=runs/data_cleaning/schedules.json --workdir=runs/data_cleaning-train
    python -m trainers.compare --config=configs/data_cleaning.py --workdir=runs/cleaning-compare

Expected: two minutes a search on two cores.
Measured: see docs/results/comparison.md.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.task = "trainers.tasks.data_cleaning"
    config.batch_size = 100
    config.epochs = (10,)
    config.budget = 120.0  # Some 110 outer steps, most of them short.
    config.validation_batch_size = 500
    config.optimizer = {"name": "keras.optimizers.Adam"}
    config.reverse_memory = 2**32
    config.hyperparameters = [{"name": "sample_weight"}]
    config.train_epochs = 10
    config.train_seeds = 2
    return config
