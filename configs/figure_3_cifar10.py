"""Figure 3 of the paper on CIFAR-10: LeNet, one epoch; see `configs/figure_3_mnist.py`.

    python -m trainers.prepare_data --dataset=cifar10
    python -m trainers.search --config=configs/figure_3_cifar10.py --workdir=runs/figure_3-search
    python -m trainers.train --config=configs/figure_3_cifar10.py \
        --schedules=runs/figure_3-search/schedules.json --workdir=runs/figure_3-train
    python -m trainers.compare --config=configs/figure_3_cifar10.py --workdir=runs/figure_3_cifar10
    python -m trainers.figures --figure=3 --results=runs/figure_3_cifar10

On a folder of images: --config.dataset=image_folder --config.data_dir=FOLDER.

Expected: some ten minutes per seed on two cores, an estimate.
Measured: see docs/results/paper.md.
"""

from configs import figure_3_mnist

STEPS = 372  # Of one epoch: 50000 images less 5%, in batches of 128.


def get_config():
    config = figure_3_mnist.get_config()
    config.dataset = "cifar10"
    one_a_step = {"name": "learning_rate", "num_buckets": STEPS, "step_size": 0.1}
    config.methods.unshared.hyperparameters = (one_a_step,)
    return config
