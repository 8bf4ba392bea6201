"""Figure 2 of the paper on CIFAR-10 in place of SVHN; otherwise as `configs/figure_2.py`.

    python -m trainers.prepare_data --dataset=cifar10
    python -m trainers.search --config=configs/figure_2_cifar10.py --workdir=runs/figure_2-search
    python -m trainers.train --config=configs/figure_2_cifar10.py \
        --schedules=runs/figure_2-search/schedules.json --workdir=runs/figure_2-train
    python -m trainers.fluctuation --config=configs/figure_2_cifar10.py --seeds=50 --horizon=250 \
        --workdir=runs/figure_2_cifar10
    python -m trainers.figures --figure=2 --results=runs/figure_2_cifar10

On a folder of images: --config.dataset=image_folder --config.data_dir=FOLDER.

Expected: under a minute per seed on two cores, an estimate.
Measured: not run yet.
"""

from configs import figure_2


def get_config():
    config = figure_2.get_config()
    config.dataset = "cifar10"
    config.validation_split = 0.04  # 2000 images.
    return config
