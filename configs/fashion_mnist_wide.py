"""LeNet on Fashion-MNIST with ranges ten times as wide at either end, see `configs/digits_wide.py`.

    python -m trainers.prepare_data --dataset=fashion_mnist
    python -m trainers.search --config=configs/fashion_mnist_wide.py --workdir=runs/fashion_wide
    python -m trainers.train --config=configs/fashion_mnist_wide.py \
        --schedules=runs/fashion_wide/schedules.json --workdir=runs/fashion_wide-train
    python -m trainers.compare --config=configs/fashion_mnist_wide.py \
        --workdir=runs/fashion_wide-compare

Expected: about four minutes a search on two cores.
Measured: no comparison yet.
"""

from configs import digits_wide, fashion_mnist_lenet


def get_config():
    return digits_wide.widened(fashion_mnist_lenet.get_config())
