"""Replacements for TensorFlow's functions with a wrong or missing second derivative.

Each takes the arguments of the function that it replaces and gives the same values.
"""

import functools

import tensorflow as tf

_STOCK = {
    "max_pool": tf.nn.max_pool,
    "avg_pool": tf.nn.avg_pool,
    "pool": tf.nn.pool,
    "resize": tf.image.resize,
}


def moments(x, axes, shift=None, keepdims=False, name=None):
    """`tf.nn.moments` with correct second derivatives.

    TensorFlow stops the gradient of the mean inside the variance: the first derivative is
    right (the mean's term vanishes), the second loses a term.
    """
    y = tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x
    # Divides the sums; derivatives of `reduce_mean` would divide all of `y`.
    total = tf.reduce_sum(y, axes, keepdims=True)
    share = tf.cast(tf.size(total), y.dtype) / tf.cast(tf.size(y), y.dtype)
    mean = share * total

    @tf.custom_gradient
    def variance(y):
        def gradient(upstream):
            mean = share * tf.reduce_sum(y, axes, keepdims=True)
            return (2 * share * upstream) * (y - mean)

        return share * tf.reduce_sum(tf.square(y - mean), axes, keepdims=True), gradient

    variance = variance(y)
    variance = variance if keepdims else tf.squeeze(variance, axes)
    mean = mean if keepdims else tf.squeeze(mean, axes)
    return tf.cast(mean, x.dtype), tf.cast(variance, x.dtype)


def softmax_cross_entropy_with_logits(labels, logits, axis=-1, name=None):
    """`tf.nn.softmax_cross_entropy_with_logits` with correct second derivatives.

    TensorFlow takes the gradient by the logits as independent of the labels, through which learned
    label smoothing enters.
    """
    labels = tf.cast(labels, logits.dtype)
    return -tf.reduce_sum(labels * tf.nn.log_softmax(logits, axis), axis)


def softsign(features, name=None):
    """`tf.nn.softsign`; the gradient of TensorFlow's has no gradient."""
    return features / (1 + tf.abs(features))


# ---------------------------------------------------------------------------------- resizing
def resize(
    images, size, method="bilinear", preserve_aspect_ratio=False, antialias=False, name=None
):
    """`tf.image.resize` as a product with one matrix per axis, as all its methods can be written.

    TensorFlow's second derivative is silently zero for the method "bilinear" and missing for the
    others.
    """
    if preserve_aspect_ratio or not images.dtype.is_floating:
        return _STOCK["resize"](images, size, method, preserve_aspect_ratio, antialias)
    dtype = tf.float64 if images.dtype == tf.float64 else tf.float32
    lengths, size = tf.shape(images)[-3:-1], tf.convert_to_tensor(size)
    rows, columns = (
        tf.cast(_resizing_matrix(lengths[axis], size[axis], method, antialias), dtype)
        for axis in (0, 1)
    )
    resized = tf.einsum("hi,...ijc->...hjc", rows, tf.cast(images, dtype))
    resized = tf.einsum("wj,...hjc->...hwc", columns, resized)
    static = tf.get_static_value(size)
    static = [None, None] if static is None else list(static)
    resized.set_shape([*images.shape[:-3], *static, images.shape[-1]])
    return tf.cast(resized, images.dtype) if method == "nearest" else resized


def _resizing_matrix(length, new_length, method, antialias):
    """Float32 `[new_length, length]`: the matrix that multiplies an axis of that length."""
    images = tf.eye(length)[:, :, tf.newaxis, tf.newaxis]
    resized = _STOCK["resize"](images, [new_length, 1], method, False, antialias)
    return tf.transpose(resized[:, :, 0, 0])


# ----------------------------------------------------------------------------------- pooling
def max_pool(input, ksize, strides, padding, data_format=None, name=None):
    """`tf.nn.max_pool`, in three dimensions by `_pool_volume`."""
    if _is_volume(input, data_format):
        return _pool_volume("max_pool", input, ksize, strides, padding)
    return _STOCK["max_pool"](input, ksize, strides, padding, data_format)


def avg_pool(input, ksize, strides, padding, data_format=None, name=None):
    """`tf.nn.avg_pool`, in three dimensions by `_pool_volume`."""
    if _is_volume(input, data_format):
        return _pool_volume("avg_pool", input, ksize, strides, padding)
    return _STOCK["avg_pool"](input, ksize, strides, padding, data_format)


def pool(
    input,
    window_shape,
    pooling_type,
    strides=None,
    padding="VALID",
    data_format=None,
    dilations=None,
    name=None,
):
    """`tf.nn.pool`, in three dimensions by `_pool_volume`."""
    if _is_volume(input, data_format) and not dilations:
        kind = f"{pooling_type.lower()}_pool"
        return _pool_volume(kind, input, window_shape, strides or 1, padding)
    return _STOCK["pool"](
        input, window_shape, pooling_type, strides, padding, data_format, dilations
    )


def _is_volume(images, data_format):
    return (
        len(images.shape) == 5 and data_format in (None, "NDHWC") and None not in images.shape[1:]
    )


def _pool_volume(kind, volumes, ksize, strides, padding):
    """Pools rows and columns, then depth. On a CPU TensorFlow has no 3D pooling in float64."""
    ksize, strides = (_triple(sizes) for sizes in (ksize, strides))
    pool_slices = functools.partial(_STOCK[kind], padding=padding)
    depth, *sizes, channels = volumes.shape[1:]
    slices = pool_slices(tf.reshape(volumes, [-1, *sizes, channels]), ksize[1:], strides[1:])
    height, width = slices.shape[1:3]
    rows = tf.reshape(slices, [-1, depth, height * width, channels])
    pooled = pool_slices(rows, [ksize[0], 1], [strides[0], 1])
    return tf.reshape(pooled, [-1, pooled.shape[1], height, width, channels])


def _triple(sizes):
    sizes = [sizes] * 3 if isinstance(sizes, int) else list(sizes)
    return sizes[1:4] if len(sizes) == 5 else sizes


# ------------------------------------------------------------------------------------------- CTC
_IMPOSSIBLE = -1e30  # The logarithm of probability zero; finite, so that derivatives are finite.


def ctc_loss(target, output, target_length, output_length, mask_index=0):
    """Keras's `ctc_loss` as a recursion over time, which TensorFlow differentiates twice.

    Args:
        target: Labels, integers `[batch, labels]`.
        output: Logits `[batch, time, classes]`.
        target_length, output_length: Integers `[batch]`.
        mask_index: The class of the blank. Defaults to `0`.

    Returns:
        `[batch]`, the negative logarithm of the probability of all alignments.

    Source: Graves et al. (2006), "Connectionist Temporal Classification", section 4.1.
    """
    logits = tf.convert_to_tensor(output)
    logits = tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
    target = tf.cast(tf.convert_to_tensor(target), "int32")
    target_length, output_length = (
        tf.cast(tf.convert_to_tensor(length), "int32") for length in (target_length, output_length)
    )
    log_probabilities = tf.nn.log_softmax(logits)
    # The labels with a blank before, between and after them.
    blanks = tf.fill(tf.shape(target), mask_index)
    path = tf.reshape(tf.stack([blanks, target], 2), [tf.shape(target)[0], -1])
    path = tf.concat([path, blanks[:, :1]], 1)
    emitted = tf.gather(log_probabilities, path, axis=2, batch_dims=1)
    two_before = tf.pad(path[:, :-2], [[0, 0], [2, 0]], constant_values=mask_index)
    skips = (path != mask_index) & (path != two_before)
    position = tf.range(tf.shape(path)[1])

    def shifted(alpha, by):
        return tf.pad(alpha[:, :-by], [[0, 0], [by, 0]], constant_values=_IMPOSSIBLE)

    def one_step(t, alpha):
        ways = [alpha, shifted(alpha, 1), tf.where(skips, shifted(alpha, 2), _IMPOSSIBLE)]
        after = tf.reduce_logsumexp(tf.stack(ways), 0) + emitted[:, t]
        return t + 1, tf.where((t < output_length)[:, None], after, alpha)

    start = tf.where(position < 2, emitted[:, 0], tf.cast(_IMPOSSIBLE, logits.dtype))
    time = logits.shape[1] if logits.shape[1] is not None else tf.shape(logits)[1]
    _, alpha = tf.while_loop(lambda t, _: t < time, one_step, [1, start], parallel_iterations=1)
    last = (position == 2 * target_length[:, None]) | (position == 2 * target_length[:, None] - 1)
    return -tf.reduce_logsumexp(tf.where(last, alpha, _IMPOSSIBLE), 1)


# Modules of TensorFlow, and what replaces their function of the same name.
REPLACEMENTS = (
    ("nn", moments),
    ("nn", softmax_cross_entropy_with_logits),
    ("nn", softsign),
    ("nn", max_pool),
    ("nn", avg_pool),
    ("nn", pool),
    ("image", resize),
)
_MODULES = {"nn": tf.nn, "image": tf.image}


def owners(name):
    """The module objects with the name of a module of TensorFlow.

    `import tensorflow.nn` anywhere makes a second object of `tf.nn`.
    """
    return {id(each): each for each in (_MODULES[name], getattr(tf, name))}.values()
