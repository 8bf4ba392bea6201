"""Three tasks with a shared trunk: their weights in the loss, and rates of the trunk's layers.

Images of two overlapping MNIST digits; the left one, the right one and their sum are told. Learned
are AdamW's learning rate (five knots), beta_1 and weight decay, a weight for each task, and a
factor on the rate of each of the trunk's three layers: 13 numbers. The validation loss counts all
tasks alike.

    python -m trainers.prepare_data --dataset=mnist
    python -m trainers.search --config=configs/several_tasks.py --workdir=runs/several_tasks
    python -m trainers.train --config=configs/several_tasks.py \
        --schedules=runs/several_tasks/schedules.json --workdir=runs/several_tasks-train
    python -m trainers.compare --config=configs/several_tasks.py --workdir=runs/several-compare

Expected: two minutes a search on two cores, an estimate.
Measured: see docs/results/comparison.md.
"""

from configs import digits

TASKS = ("left", "right", "sum")
TRUNK = ("conv_1", "conv_2", "trunk")


def get_config():
    config = digits.get_config()
    config.task = "trainers.tasks.several_tasks"
    config.batch_size = 100
    config.epochs = (5,)
    config.budget = 12.0
    config.validation_batch_size = 250
    config.optimizer = {"name": "keras.optimizers.AdamW"}
    config.reverse_memory = 2**31
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 5, "interpolation": "linear", "max_value": 0.1},
        {"name": "beta_1"},
        {"name": "weight_decay"},
        *(
            {"name": f"loss.{task}", "initial": 1.0, "min_value": 0.05, "max_value": 20.0}
            for task in TASKS
        ),
        *({"name": f"{layer}.learning_rate_multiplier"} for layer in TRUNK),
    ]
    config.train_epochs = 5
    config.train_seeds = 2
    return config
