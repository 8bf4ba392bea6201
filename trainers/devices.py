"""The device that a program computes on, and whether XLA compiles its training steps.

    python -m trainers.search --config=configs/digits.py --workdir=runs/digits --device=gpu

A GPU's memory grows as it is needed, so several programs can share one.
"""

from absl import flags

DEVICES = ("auto", "cpu", "gpu")
COMPILERS = {"auto": "auto", "true": True, "false": False}

DEVICE = flags.DEFINE_enum(
    "device", "auto", DEVICES, "Where to compute; auto is a GPU where there is one."
)
JIT_COMPILE = flags.DEFINE_enum(
    "jit_compile",
    "auto",
    COMPILERS,
    "Whether XLA compiles the training steps; auto is on a GPU only.",
)


def choose(device):
    """Makes a device the one that TensorFlow computes on; before it computes anything.

    Args:
        device: `"cpu"`; `"gpu"`, all there are; or `"auto"`, a GPU where there is one.

    Returns:
        `"cpu"` or `"gpu"`.

    Raises:
        ValueError: There is no GPU, or TensorFlow has begun to compute on one.

    Example:

    >>> choose("auto")
    'cpu'
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise ValueError(
            "--device=gpu, but TensorFlow finds no GPU. Install its libraries by "
            '`pip install "keras-fds[gpu]"`, see that `nvidia-smi` lists one, or leave --device '
            "out."
        )
    if not gpus:
        return "cpu"
    try:
        if device == "cpu":
            tf.config.set_visible_devices([], "GPU")
            return "cpu"
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise ValueError(
            f"--device={device} comes too late: TensorFlow computes already. {error}"
        ) from error
    return "gpu"


def jit_compile(asked, device):
    """The argument `jit_compile` of `model.compile` for the flag's value on a device.

    Example:

    >>> jit_compile("auto", "cpu")
    False
    """
    # Keras's own "auto" goes by the GPUs that there are, used or not.
    return COMPILERS[asked] if device == "gpu" or asked != "auto" else False
