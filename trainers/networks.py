"""The networks of the experiments, as uncompiled Keras models that return logits.

Initial weights are drawn as in the paper: Glorot normal for every kernel, zero for every bias.
"""

import functools

import keras

_Conv2D = functools.partial(keras.layers.Conv2D, kernel_initializer="glorot_normal")
_Dense = functools.partial(keras.layers.Dense, kernel_initializer="glorot_normal")


def build(name, input_shape, num_classes):
    """Builds one of the networks of this file by its name.

    Args:
        name: `digits_cnn`, `lenet`, `mlp`, or `wrn` (`wide_resnet` at depth 16, width 1).
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.

    Returns:
        A `keras.Model` from float images [batch, *input_shape] to logits [batch, num_classes].

    Raises:
        ValueError: The name is unknown, or the images are too small for the network.

    Example:

    >>> build("lenet", (28, 28, 1), 10).count_params()
    61706
    """
    if name not in _NETWORKS:
        names = ", ".join(sorted(_NETWORKS))
        raise ValueError(f"Unknown network. There are {names}. Received: name={name}")
    return _NETWORKS[name](input_shape, num_classes)


def lenet(input_shape, num_classes):
    """LeNet-5 with rectified linear units and max pooling; images of 12x12 or more.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.

    Returns:
        A `keras.Model` that returns logits.

    Raises:
        ValueError: The images are too small.

    Example:

    >>> lenet((28, 28, 1), 10).output_shape
    (None, 10)
    """
    if min(input_shape[:2]) < 12:
        raise ValueError(
            f"lenet needs images of at least 12x12. Received: input_shape={input_shape}"
        )
    inputs = keras.Input(input_shape)
    x = _Conv2D(6, 5, padding="same", activation="relu")(inputs)
    x = keras.layers.MaxPooling2D(2)(x)
    x = _Conv2D(16, 5, activation="relu")(x)
    x = keras.layers.MaxPooling2D(2)(x)
    x = keras.layers.Flatten()(x)
    x = _Dense(120, activation="relu")(x)
    x = _Dense(84, activation="relu")(x)
    return keras.Model(inputs, _Dense(num_classes)(x), name="lenet")


def digits_cnn(input_shape, num_classes):
    """A small convolutional network with batch normalisation, made for 8x8 images.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.

    Returns:
        A `keras.Model` that returns logits.

    Example:

    >>> digits_cnn((8, 8, 1), 10).output_shape
    (None, 10)
    """
    inputs = keras.Input(input_shape)
    x = inputs
    for filters, stride in ((16, 1), (32, 2)):
        x = _Conv2D(filters, 3, strides=stride, padding="same", use_bias=False)(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, _Dense(num_classes)(x), name="digits_cnn")


def mlp(input_shape, num_classes, widths=(128, 64)):
    """A multilayer perceptron with rectified linear units.

    Args:
        input_shape: Shape of one example, of any rank.
        num_classes: Number of classes.
        widths: Units of each hidden layer. Defaults to (128, 64).

    Returns:
        A `keras.Model` that returns logits.

    Example:

    >>> mlp((8, 8, 1), 10, widths=()).count_params()
    650
    """
    inputs = keras.Input(input_shape)
    x = keras.layers.Flatten()(inputs)
    for width in widths:
        x = _Dense(width, activation="relu")(x)
    return keras.Model(inputs, _Dense(num_classes)(x), name="mlp")


def wide_resnet(input_shape, num_classes, depth=16, width=1):
    """A wide residual network of pre-activation blocks (Zagoruyko & Komodakis, 2016).

    3x3 convolutions are padded by 1 on every side, also those of stride 2, where Keras's "same"
    would pad on one side only. The shortcut is a 1x1 convolution of the first activation where the
    number of channels changes, else the block's input.

    Args:
        input_shape: Shape of one image, (height, width, channels).
        num_classes: Number of classes.
        depth: Number of convolutions on a path, and the dense layer; 6 n + 4. Defaults to 16.
        width: Factor on the 16, 32 and 64 channels of the three groups. Defaults to 1.

    Returns:
        A `keras.Model` that returns logits.

    Raises:
        ValueError: `depth` is not 6 n + 4 with n of 1 or more.

    Example:

    >>> wide_resnet((32, 32, 3), 10, depth=10).name
    'wrn_10_1'
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth must be 6 n + 4 with n of 1 or more. Received: depth={depth}")
    inputs = keras.Input(input_shape)
    x = _padded_conv(inputs, 16, 1)
    for channels, first_stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
        for block in range((depth - 4) // 6):
            x = _residual_block(x, channels, first_stride if block == 0 else 1)
    x = keras.layers.GlobalAveragePooling2D()(_activation(x))
    return keras.Model(inputs, _Dense(num_classes)(x), name=f"wrn_{depth}_{width}")


def _residual_block(x, channels, stride):
    activated = _activation(x)
    shortcut = x
    if x.shape[-1] != channels:
        shortcut = _Conv2D(channels, 1, strides=stride, use_bias=False)(activated)
    x = _activation(_padded_conv(activated, channels, stride))
    return keras.layers.Add()([_padded_conv(x, channels, 1), shortcut])


def _padded_conv(x, channels, stride):
    x = keras.layers.ZeroPadding2D(1)(x)
    return _Conv2D(channels, 3, strides=stride, use_bias=False)(x)


def _activation(x):
    return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))


_NETWORKS = {"digits_cnn": digits_cnn, "lenet": lenet, "mlp": mlp, "wrn": wide_resnet}
