"""What short trainings are worth to vectors: `Descent` with them, and over the whole horizon alone.

At the cost of 120 plain trainings: a weight for each of 5,000 examples, half of whose labels are
wrong; and an L2 penalty for each of four layers, with 800 images, in ten epochs.

    python -m trainers.prepare_data --dataset=mnist
    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.compare --config=configs/short_trainings.py --workdir=runs/short_trainings

Expected: two minutes per task, method and seed on one core, an estimate.
Measured: see docs/research_log.md.
"""

import ml_collections

from configs import data_cleaning, low_data


def get_config():
    weights, penalties = data_cleaning.get_config(), low_data.get_config()
    penalties.epochs = (10,)
    penalties.train_epochs = 10
    penalties.budget = weights.budget
    penalties.optimizer = {"name": "keras.optimizers.Adam"}
    penalties.hyperparameters = [{"name": "*.kernel_regularizer.l2", "each": True}]
    config = ml_collections.ConfigDict()
    config.tasks = {"weights": weights, "penalties": penalties}
    for task in config.tasks.values():
        task.methods = {"short": {}, "whole": {"outer_steps": 30, "budget": None}}
    return config
