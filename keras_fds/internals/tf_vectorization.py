"""Fused rules for `tf.vectorized_map` over the tangents of a gradient.

In the directional derivative of a gradient every product has one operand that carries the K
tangents (stacked along a new leading axis) and one that all tangents share. The stock rules of
`tf.vectorized_map` tile the shared operand, or loop over the tangents. The rules below use the
linearity in the stacked operand: K products with a shared operand are one product with K times
as many channels, or one broadcast product.

`installed()` puts the rules in place while a map is traced. A rule leaves a case that it does not
cover to the stock rule that it replaces. Only this module uses the internals of
`tf.vectorized_map`.
"""

import contextlib
import functools
import threading

import tensorflow as tf
from tensorflow.python.framework import ops as _ops
from tensorflow.python.ops import control_flow_util as _control_flow
from tensorflow.python.ops.parallel_for import pfor as _pfor

_RULES = {}
_lock = threading.Lock()
_open = []  # The stock rules, once for each map that is being traced.


@contextlib.contextmanager
def installed():
    """While open, `tf.vectorized_map` uses the rules."""
    registry = _pfor._pfor_converter_registry
    with _lock:
        if not _open:
            stock_rules = {kind: registry[kind] for kind in _RULES}
            for kind, stock in stock_rules.items():
                registry[kind] = functools.partial(_RULES[kind], stock=stock)
        _open.append(_open[0] if _open else stock_rules)
    try:
        yield
    finally:
        with _lock:
            stock_rules = _open.pop()
            if not _open:
                registry.update(stock_rules)


def _rule(*operation_types, when=None):
    """Registers `function(pfor_input, *tensors)` for inputs stacked as in `when`, a list of bools.

    The function returns the stacked result, or None to leave the case to the stock rule.
    """

    def record(function):
        def convert(pfor_input, stock):
            if when is not None and [x.is_stacked for x in pfor_input.inputs] not in when:
                return stock(pfor_input)
            for stacked, single in zip(pfor_input.inputs, pfor_input.op.inputs):
                if stacked.is_stacked and single.shape.rank is not None:
                    stacked.t.set_shape([None, *single.shape])
            result = function(pfor_input, *(x.t for x in pfor_input.inputs))
            if result is None:
                return stock(pfor_input)
            return _pfor.wrap(result, True) if isinstance(result, tf.Tensor) else result

        _RULES.update(dict.fromkeys(operation_types, convert))
        return function

    return record


def _same_operation(pfor_input, *inputs):
    """The operation that is being converted, with its attributes, on other inputs."""
    dtypes = [output.dtype for output in pfor_input.outputs]
    attributes = pfor_input.op.node_def.attr
    return _pfor._create_op(pfor_input.op_type, list(inputs), dtypes, attributes).outputs[0]


def _sizes(tensor):
    """The dimensions of a tensor, each a Python integer where it is known."""
    static, dynamic = tensor.shape.as_list(), tf.shape(tensor)
    return [dynamic[i] if size is None else size for i, size in enumerate(static)]


def _count(pfor_input):
    """The number of tangents K, a Python integer where it is known."""
    vector = pfor_input.pfor.loop_len_vector
    static = tf.get_static_value(vector)
    return vector[0] if static is None else int(static[0])


# Convolutions: conv(x, w_k) over all k is one convolution with the filters side by side. The same
# holds for its two transposes, each with the stacked operand's channels merged with K.


def _merge_into_channels(stacked, axis, count_last=False):
    """[K, ..., C, ...] to [..., K C, ...] or [..., C K, ...], where `axis` is then that of C."""
    sizes, order = _sizes(stacked), list(range(1, stacked.shape.rank))
    order.insert(axis + count_last, 0)
    merged = [*sizes[1 : axis + 1], sizes[0] * sizes[axis + 1], *sizes[axis + 2 :]]
    return tf.reshape(tf.transpose(stacked, order), merged)


def _split_from_channels(merged, axis, count):
    """[..., K C, ...] to [K, ..., C, ...], where `axis` is that of K C."""
    sizes, rank = _sizes(merged), merged.shape.rank
    split = tf.reshape(merged, [*sizes[:axis], count, sizes[axis] // count, *sizes[axis + 1 :]])
    return tf.transpose(split, [axis, *range(axis), *range(axis + 1, rank + 1)])


def _with_kernels_side_by_side(convolve, kernels, axis, count):
    """[K, batch, height, width, C] from one convolution, where `axis` is that of C in a kernel."""
    channels = kernels.shape[axis + 1]
    # Few channels are slow to move: C K is then better, whose transpose is that of a matrix.
    if channels is None or channels >= 16:
        return _split_from_channels(convolve(_merge_into_channels(kernels, axis)), 3, count)
    merged = convolve(_merge_into_channels(kernels, axis, count_last=True))
    matrix = tf.transpose(tf.reshape(merged, [-1, count]))
    return tf.reshape(matrix, [count, *_sizes(merged)[:3], channels])


def _is_plain(pfor_input, image_shape, kernel_shape):
    """Channels last and no channel groups: every filter sees every channel of the image."""
    is_known = image_shape.rank is not None and kernel_shape.rank is not None
    if not is_known or pfor_input.get_attr("data_format") != b"NHWC":
        return False
    return image_shape[-1] is not None and image_shape[-1] == kernel_shape[-2]


@_rule("Conv2D", when=[[False, True]])
def _convolution(pfor_input, image, kernels):
    if not _is_plain(pfor_input, image.shape, kernels.shape):
        return None
    convolve = functools.partial(_same_operation, pfor_input, image)
    return _with_kernels_side_by_side(convolve, kernels, 3, _count(pfor_input))


@_rule("Conv2DBackpropInput", when=[[False, True, False]])
def _convolution_to_image(pfor_input, image_sizes, kernels, gradient):
    if not _is_plain(pfor_input, pfor_input.outputs[0].shape, kernels.shape):
        return None
    count = _count(pfor_input)
    sizes = image_sizes * [1, 1, 1, count]
    return _with_kernels_side_by_side(
        lambda kernel: _same_operation(pfor_input, sizes, kernel, gradient), kernels, 2, count
    )


@_rule("Conv2DBackpropFilter", when=[[a, False, b] for a in (False, True) for b in (False, True)])
def _convolution_to_filter(pfor_input, images, kernel_sizes, gradients):
    images_stacked, _, gradients_stacked = (x.is_stacked for x in pfor_input.inputs)
    is_plain = _is_plain(pfor_input, images.shape, pfor_input.outputs[0].shape)
    if not is_plain or (images_stacked and gradients_stacked):
        # One by one. The stock rule would do so with a warning, and without channel groups.
        return _pfor._fallback_converter(pfor_input)
    count = _count(pfor_input)
    if images_stacked:
        axis, images = 2, _merge_into_channels(images, 3)
    else:
        axis, gradients = 3, _merge_into_channels(gradients, 3)
    sizes = kernel_sizes * [count if i == axis else 1 for i in range(4)]
    return _split_from_channels(_same_operation(pfor_input, images, sizes, gradients), axis, count)


# Max-pooling. Its gradient scatters to, and the gradient of that gathers from, the places of the
# maxima of the windows, which all tangents share. `MaxPoolWithArgmax` and the CPU kernels of the
# gradients resolve ties alike: the first maximum of a window wins.


def _windows(pfor_input, image):
    """The windows, as arguments of an operation; None where the rules do not cover them."""
    windows = {name: pfor_input.get_attr(name) for name in ("ksize", "strides", "padding")}
    is_covered = (
        image.dtype in (tf.float32, tf.float64)
        and pfor_input.get_attr("data_format") == b"NHWC"
        and windows["padding"] in (b"SAME", b"VALID")
        and all(windows[name][axis] == 1 for name in ("ksize", "strides") for axis in (0, 3))
        and not _control_flow.GraphOrParentsInXlaContext(_ops.get_default_graph())
        and not tf.config.get_visible_devices("GPU")
    )
    return dict(windows, include_batch_in_index=True) if is_covered else None


def _gather(stacked, places, image, count, windows):
    """[K, *image] to [K, *places]: the element at the place of each window."""

    @tf.custom_gradient
    def gather(stacked):
        flat = tf.reshape(stacked, [count, tf.size(image)])
        gathered = tf.gather(flat, tf.reshape(places, [-1]), axis=1)
        gathered = tf.reshape(gathered, [count, *_sizes(places)])
        return gathered, lambda upstream: _scatter(upstream, places, image, count, windows)

    return gather(stacked)


def _scatter(stacked, places, image, count, windows):
    """[K, *places] to [K, *image]: the transpose of `_gather`."""

    @tf.custom_gradient
    def scatter(stacked):
        batch, *window_sizes = _sizes(places)
        starts = tf.range(tf.cast(count, tf.int64)) * tf.size(image, out_type=tf.int64)
        shifted = places + tf.reshape(starts, [-1, 1, 1, 1, 1])
        shape = [count * batch, *_sizes(image)[1:]]
        scattered = tf.raw_ops.MaxPoolGradWithArgmax(
            input=tf.zeros(shape, image.dtype),  # Only its shape is read.
            grad=tf.reshape(stacked, [count * batch, *window_sizes]),
            argmax=tf.reshape(shifted, [count * batch, *window_sizes]),
            **windows,
        )
        scattered = tf.reshape(scattered, [count, *_sizes(image)])
        return scattered, lambda upstream: _gather(upstream, places, image, count, windows)

    return scatter(stacked)


@_rule("MaxPoolGrad", "MaxPoolGradGrad", when=[[False, False, True]])
def _pooling_gradient(pfor_input, image, _, stacked):
    windows = _windows(pfor_input, image)
    if windows is None:
        return None
    places = tf.raw_ops.MaxPoolWithArgmax(input=image, **windows).argmax
    transfer = _scatter if pfor_input.op_type == "MaxPoolGrad" else _gather
    return transfer(stacked, places, image, _count(pfor_input), windows)


# Element-wise gradients: f'(x) dy_k, where f'(x) is what the operation gives for dy = 1.


@_rule(
    "EluGrad",
    "LeakyReluGrad",
    "Relu6Grad",
    "ReluGrad",
    "SeluGrad",
    "SoftplusGrad",
    "SoftsignGrad",
    when=[[False, True], [True, False]],
)
def _activation_gradient(pfor_input, gradient, features):
    return gradient * _same_operation(pfor_input, tf.ones_like(features), features)


@_rule(
    "ReciprocalGrad",
    "RsqrtGrad",
    "SigmoidGrad",
    "SqrtGrad",
    "TanhGrad",
    when=[[False, True], [True, False]],
)
def _function_gradient(pfor_input, output, gradient):
    return gradient * _same_operation(pfor_input, output, tf.ones_like(output))


@_rule("MatMul", when=[[False, True], [True, False]])
def _matrix_product(pfor_input, left, right):
    """A batch of products that reads the shared matrix, in place of a product and a transpose."""
    options = {name: pfor_input.get_attr(name) for name in ("transpose_a", "transpose_b")}
    if pfor_input.inputs[1].is_stacked:
        return tf.matmul(left[tf.newaxis], right, **options)
    return tf.matmul(left, right[tf.newaxis], **options) if options["transpose_a"] else None


# Sums.


def _sum_over_leading_axes(stacked, kept_rank):
    """Sums [K, A, B..., C...] over A, B...: over A first, so that the summed rows are long."""
    over_first = tf.reduce_sum(stacked, 1)
    return tf.reduce_sum(over_first, list(range(1, over_first.shape.rank - kept_rank)))


@_rule("BiasAddGrad")
def _sum_to_bias(pfor_input, stacked):
    is_covered = pfor_input.get_attr("data_format") == b"NHWC" and (stacked.shape.rank or 0) > 3
    return _sum_over_leading_axes(stacked, 1) if is_covered else None


@_rule("Sum", "Mean", when=[[True, False]])
def _sum_over_axes(pfor_input, stacked, axes):
    """Sums over at least two axes, all before the ones kept; axes of length one do not count."""
    known, output_shape = tf.get_static_value(axes), pfor_input.outputs[0].shape
    if known is None and axes.dtype == tf.int32:
        # The stock rule casts whether an axis is negative, which a GPU copies there and back.
        return _same_operation(pfor_input, stacked, axes + tf.clip_by_value(axes + 1, 0, 1))
    axes = known
    if axes is None or not stacked.shape.rank or not output_shape.is_fully_defined():
        return None
    rank = stacked.shape.rank - 1
    long_axes = [axis for axis in range(rank) if stacked.shape[axis + 1] != 1]
    summed = [axis for axis in long_axes if axis in {int(a) % rank for a in axes.reshape([-1])}]
    if len(summed) < 2 or long_axes[: len(summed)] != summed:
        return None
    count, *sizes = _sizes(stacked)
    squeezed = tf.reshape(stacked, [count, *(sizes[axis] for axis in long_axes)])
    total = _sum_over_leading_axes(squeezed, len(long_axes) - len(summed))
    if pfor_input.op_type == "Mean":
        total /= tf.cast(tf.reduce_prod([sizes[axis] for axis in summed]), total.dtype)
    return tf.reshape(total, [count, *output_shape])


@_rule("AddN")
def _sum_of_terms(pfor_input, *terms):
    """What all tangents share is summed once, then broadcast."""
    if terms[0].dtype == tf.variant:
        return None
    stacked, shared = (
        [x.t for x in pfor_input.inputs if x.is_stacked == kind] for kind in (True, False)
    )
    total = tf.add_n(stacked)
    return total + tf.add_n(shared) if shared else total
