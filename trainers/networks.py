"""The networks of the experiments, as uncompiled Keras models that return logits.

Initial weights are drawn as in the paper: Glorot normal for every kernel, zero for every bias; or
kernels by another initializer. The paper's program has six. In Keras's words: `random_normal`,
`glorot_normal`, `glorot_uniform`, `he_normal`, `VarianceScaling(2.0, "fan_out")`, `orthogonal`.

Every function takes `augmentation`, a layer that images pass first, and `initializer`, as `build`.
"""

import functools
import re

import keras

_GLOROT = "glorot_normal"


def build(name, input_shape, num_classes, augmentation=None, initializer=_GLOROT):
    """Builds one of the networks of this file by its name.

    Args:
        name: `digits_cnn`; `lenet`; `lenet_valid`, the paper's LeNet without padding; `mlp`;
            `wrn_10_1`, `wrn_16_1`, `wrn_40_2` or another `wrn_DEPTH_WIDTH` (`wide_resnet`). `wrn`
            is `wrn_16_1`.
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.
        augmentation: A layer that images pass first. Defaults to `None`.
        initializer: Of every kernel: a name of Keras's initializers, or the dict of one
            (`keras.initializers.serialize`). Defaults to `"glorot_normal"`.

    Returns:
        A `keras.Model` from float images [batch, *input_shape] to logits [batch, num_classes].

    Raises:
        ValueError: The name is unknown, or the images are too small for the network.

    Example:

    >>> build("lenet", (28, 28, 1), 10).count_params()
    61706
    """
    check_initializer(initializer)
    options = {"augmentation": augmentation, "initializer": initializer}
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        options |= {"depth": int(match[1]), "width": int(match[2])}
        return wide_resnet(input_shape, num_classes, **options)
    if name == "lenet_valid":
        return lenet(input_shape, num_classes, padding="valid", **options)
    if name not in _NETWORKS:
        names = ", ".join(sorted([*_NETWORKS, "lenet_valid", "wrn_DEPTH_WIDTH"]))
        raise ValueError(f"Unknown network. There are {names}. Received: name={name}")
    return _NETWORKS[name](input_shape, num_classes, **options)


def check_initializer(initializer):
    """Checks that Keras has an initializer, by its name or its dict."""
    try:
        keras.initializers.get(initializer)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "`initializer` must be a name such as 'glorot_normal', 'he_normal', 'lecun_normal', "
            "'orthogonal' or the dict of one of Keras's initializers. "
            f"Received: initializer={initializer!r}"
        ) from error


def lenet(input_shape, num_classes, padding="same", augmentation=None, initializer=_GLOROT):
    """LeNet-5 with rectified linear units and max pooling.

    Args:
        input_shape: Shape of one image, (height, width, channels): 12x12 or more, 16x16 without
            padding.
        num_classes: Number of classes.
        padding: Of the first convolution: `"same"`, or `"valid"` as in the paper's program.
            Defaults to `"same"`.
        augmentation, initializer: As in `build`.

    Returns:
        A `keras.Model` that returns logits.

    Raises:
        ValueError: The images are too small.

    Example:

    >>> lenet((28, 28, 1), 10).output_shape
    (None, 10)
    """
    least = 12 if padding == "same" else 16
    if min(input_shape[:2]) < least:
        raise ValueError(
            f"lenet needs images of at least {least}x{least}. Received: input_shape={input_shape}"
        )
    Conv2D, Dense = _layers(initializer)
    inputs, x = _images(input_shape, augmentation)
    x = Conv2D(6, 5, padding=padding, activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = Conv2D(16, 5, activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = Dense(120, activation="relu")(x)
    x = Dense(84, activation="relu")(x)
    return keras.Model(inputs, Dense(num_classes)(x), name="lenet")


def digits_cnn(input_shape, num_classes, augmentation=None, initializer=_GLOROT):
    """A small convolutional network with batch normalisation, made for 8x8 images.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.
        augmentation, initializer: As in `build`.

    Returns:
        A `keras.Model` that returns logits.

    Example:

    >>> digits_cnn((8, 8, 1), 10).output_shape
    (None, 10)
    """
    Conv2D, Dense = _layers(initializer)
    inputs, x = _images(input_shape, augmentation)
    for filters, stride in ((16, 1), (32, 2)):
        x = Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, Dense(num_classes)(x), name="digits_cnn")


def mlp(input_shape, num_classes, widths=(128, 64), augmentation=None, initializer=_GLOROT):
    """A multilayer perceptron with rectified linear units.

    Args:
        input_shape: Shape of one example, of any rank.
        num_classes: Number of classes.
        widths: Units of each hidden layer. Defaults to (128, 64).
        augmentation, initializer: As in `build`.

    Returns:
        A `keras.Model` that returns logits.

    Example:

    >>> mlp((8, 8, 1), 10, widths=()).count_params()
    650
    """
    _, Dense = _layers(initializer)
    inputs, x = _images(input_shape, augmentation)
    x = keras.layers.Flatten()(x)
    for width in widths:
        x = Dense(width, activation="relu")(x)
    return keras.Model(inputs, Dense(num_classes)(x), name="mlp")


def wide_resnet(
    input_shape, num_classes, depth=16, width=1, augmentation=None, initializer=_GLOROT
):
    """A wide residual network of pre-activation blocks (Zagoruyko & Komodakis, 2016).

    3x3 convolutions are padded by 1 on every side, also those of stride 2, where Keras's "same"
    would pad on one side only. The shortcut is a 1x1 convolution of the first activation where the
    number of channels changes, else the block's input.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.
        depth: Number of convolutions on a path, and the dense layer; 6 n + 4. Defaults to 16.
        width: Factor on the 16, 32 and 64 channels of the three groups. Defaults to 1.
        augmentation, initializer: As in `build`.

    Returns:
        A `keras.Model` that returns logits.

    Raises:
        ValueError: `depth` is not 6 n + 4 with n of 1 or more, or `width` is not 1 or more.

    Example:

    >>> wide_resnet((32, 32, 3), 10, depth=10).name
    'wrn_10_1'
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n of 1 or more. Received: depth={depth}")
    if width < 1:
        raise ValueError(f"width must be 1 or more. Received: width={width}")
    Conv2D, Dense = _layers(initializer)
    inputs, x = _images(input_shape, augmentation)
    x = _padded(Conv2D, x, 16, 1)
    for channels, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for block in range((depth - 4) // 6):
            x = _residual_block(Conv2D, x, channels, first_stride if block == 0 else 1)
    x = keras.layers.GlobalAveragePooling2D()(_activation(x))
    return keras.Model(inputs, Dense(num_classes)(x), name=f"wrn_{depth}_{width}")


def _images(input_shape, augmentation):
    """The model's input, and what its first layer sees."""
    inputs = keras.Input(input_shape)
    return inputs, inputs if augmentation is None else augmentation(inputs)


def _layers(initializer):
    """`Conv2D` and `Dense` whose kernels each have an initializer of their own."""
    return (
        functools.partial(keras.layers.Conv2D, kernel_initializer=initializer),
        functools.partial(keras.layers.Dense, kernel_initializer=initializer),
    )


def _residual_block(Conv2D, x, channels, stride):
    activated = _activation(x)
    shortcut = x
    if x.shape[-1] != channels:
        shortcut = Conv2D(channels, 1, strides=stride, use_bias=False)(activated)
    x = _activation(_padded(Conv2D, activated, channels, stride))
    return keras.layers.Add()([_padded(Conv2D, x, channels, 1), shortcut])


def _padded(Conv2D, x, channels, stride):
    x = keras.layers.ZeroPadding2D(1)(x)
    return Conv2D(channels, 3, strides=stride, use_bias=False)(x)


def _activation(x):
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))


_NETWORKS = {"digits_cnn": digits_cnn, "lenet": lenet, "mlp": mlp, "wrn": wide_resnet}
