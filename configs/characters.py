"""Characters of a text by a small transformer with AdamW: schedules and a factor for every part.

Learning rate, weight decay and beta_2 in buckets, beta_1, and factors on the learning rates of the
embeddings, of either block's attention and of either block's layers: 19 numbers.

    python -m trainers.search --config=configs/characters.py --config.data_dir=TEXT.txt \
        --workdir=runs/characters
    python -m trainers.train --config=configs/characters.py --config.data_dir=TEXT.txt \
        --schedules=runs/characters/schedules.json --workdir=runs/characters-train
    python -m trainers.compare --config=configs/characters.py --config.data_dir=TEXT.txt \
        --workdir=runs/characters-compare

Expected: ten minutes a search on two cores, on a text of a million characters; an estimate.
Measured: no comparison yet.
"""

from configs import digits

PARTS = ("characters", "attention_1", "wide_1", "narrow_1", "attention_2", "wide_2", "narrow_2")


def get_config():
    config = digits.get_config()
    config.task = "trainers.tasks.characters"
    config.batch_size = 64
    config.epochs = (2,)
    config.budget = 12.0
    config.validation_split = 0.1
    config.validation_batch_size = 200
    config.optimizer = {"name": "keras.optimizers.AdamW"}
    config.reverse_memory = 2**32
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear", "max_value": 0.1},
        {"name": "weight_decay", "num_buckets": 2},
        {"name": "beta_2", "num_buckets": 2},
        {"name": "beta_1"},
        *({"name": f"{part}.learning_rate_multiplier"} for part in PARTS),
    ]
    config.train_epochs = 2
    return config
