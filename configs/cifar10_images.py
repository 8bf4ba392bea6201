"""CIFAR-10 with WRN-16-1, short: schedules for two epochs, trained with crops and mirror images.

Seven knots of the learning rate, a momentum and a weight decay, batches of 128.

    python -m trainers.search --config=configs/cifar10_images.py --config.data_dir=FOLDER \
        --workdir=runs/cifar10
    python -m trainers.train --config=configs/cifar10_images.py --config.data_dir=FOLDER \
        --schedules=runs/cifar10/schedules.json --workdir=runs/cifar10-train
    python -m trainers.compare --config=configs/cifar10_images.py --config.data_dir=FOLDER \
        --workdir=runs/cifar10-compare --seeds=1

FOLDER holds images, `train/CLASS/*.png` and `test/CLASS/*.png`. With --config.dataset=cifar10, and
without data_dir, `python -m trainers.prepare_data --dataset=cifar10` fetches them.

Expected: 20 minutes a search on two cores, an estimate.
Measured: no comparison yet.
"""

from configs import digits


def get_config():
    config = digits.get_config()
    config.dataset = "image_folder"
    config.network = "wrn_16_1"
    config.augmentation = "crop_flip"
    config.epochs = (2,)
    config.budget = 8.0
    config.validation_split = 0.05
    config.validation_batch_size = 500
    config.reverse_memory = 2**32
    config.hyperparameters = [
        {"name": "learning_rate", "num_buckets": 7, "interpolation": "linear"},
        {"name": "momentum"},
        {"name": "weight_decay"},
    ]
    config.train_epochs = 2
    config.train_seeds = 1
    return config
