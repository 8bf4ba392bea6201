"""Data cleaning: a weight for each of 5,000 examples, half of whose labels are wrong.

A perceptron on Fashion-MNIST, Adam at a fixed rate, 1,000 right labels for validation. The rivals
learn schedules only, with all examples.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/data_cleaning.py --workdir=runs/data_cleaning
    python -m trainers.train --config=configs/data_cleaning.py \
        --schedules=runs/data_cleaning/schedules.json --workdir=runs/data_cleaning-train
    python -m trainers.compare --config=configs/data_cleaning.py --workdir=runs/cleaning-compare

Expected: two minutes a search on two cores.
Measured: no comparison yet.
"""

from configs import digits
from trainers import methods

SCHEDULES = (
    {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear", "max_value": 0.1},
    {"name": "beta_1"},
)


def get_config():
    config = digits.get_config()
    config.task = "trainers.tasks.data_cleaning"
    config.batch_size = 100
    config.epochs = (10,)
    config.outer_steps = 30
    config.validation_batch_size = 500
    config.optimizer = {"name": "keras.optimizers.Adam", "learning_rate": 3e-3}
    config.reverse_memory = 2**32
    config.hyperparameters = [{"name": "sample_weight"}]
    config.train_epochs = 10
    config.train_seeds = 2
    config.methods = {
        "weights": {},
        "schedules": {
            "hyperparameters": SCHEDULES,
            "outer_steps": None,
            "budget": 12.0,
        },
        "tpe": methods.black_box(epochs=10, budget=120.0, hyperparameters=SCHEDULES),
    }
    return config
