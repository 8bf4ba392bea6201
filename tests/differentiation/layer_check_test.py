"""Every layer of Keras has the second derivatives that docs/layers.md says."""

import contextlib
import functools
import inspect
import pathlib
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_fds.differentiation import jacobian_products
from keras_fds.differentiation.layer_check import layer_error
from keras_fds.internals import keras_layers, tf_second_derivatives

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")
BOUND = 1e-6
EXACT = "exact"
CORRECTED = "exact, corrected"
ONE_BY_ONE = "exact, one by one"
DATA = "exact on data"
STOPS = "stops gradients"
UNCHECKED = "not checked"
VERDICTS = (EXACT, CORRECTED, ONE_BY_ONE, DATA, STOPS, UNCHECKED)

L = keras.layers
GENERATOR = np.random.default_rng(0)


def normal(*shape):
    return GENERATOR.normal(size=shape)


def some(*shape):
    """A mask whose first step is never masked."""
    mask = GENERATOR.random(shape) < 0.6
    mask[:, 0] = True
    return mask


ROWS, SEQUENCE, IMAGE = normal(4, 3), normal(2, 3, 2), normal(2, 4, 4, 2)
VOLUME = normal(1, 3, 3, 3, 1)
BY_RANK = {1: normal(2, 5, 2), 2: IMAGE, 3: VOLUME}
INDICES = GENERATOR.integers(0, 5, (2, 3))

# "Class" or "Class:variant" -> (function that makes the layer, inputs, keywords of the call).
CASES = {}


def classes(name):
    return name.split(":")[0].split(", ")


def case(name, make, *inputs, **keywords):
    assert name not in CASES, name
    CASES[name] = (make, inputs, keywords)


def dense_and_merging():
    case("Dense", lambda: L.Dense(3, "tanh", kernel_regularizer="l2"), ROWS)
    case("EinsumDense", lambda: L.EinsumDense("abc,cd->abd", (None, 2), bias_axes="d"), SEQUENCE)
    case("Embedding", lambda: L.Embedding(5, 2, embeddings_regularizer="l2"), INDICES)
    case("Embedding:mask", lambda: L.Embedding(5, 2, mask_zero=True), INDICES)
    case("ReversibleEmbedding", lambda: L.ReversibleEmbedding(5, 2), INDICES)
    case("ReversibleEmbedding:back", lambda: L.ReversibleEmbedding(5, 3), ROWS, reverse=True)
    case("Bidirectional", lambda: L.Bidirectional(L.SimpleRNN(2)), SEQUENCE)
    case("TimeDistributed", lambda: L.TimeDistributed(L.Dense(2)), SEQUENCE, mask=some(2, 3))
    case("Lambda", lambda: L.Lambda(keras.ops.sin), ROWS)
    for name in ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"):
        case(name, getattr(L, name), [ROWS, normal(4, 3)])
    case("Dot", lambda: L.Dot(1, normalize=True), [ROWS, normal(4, 3)])


def convolutions():
    for rank, options in (
        (1, {"padding": "causal", "strides": 2}),
        (2, {"padding": "same", "dilation_rate": 2}),
        (3, {"padding": "same", "strides": 2}),
    ):
        make = getattr(L, f"Conv{rank}D")
        case(f"Conv{rank}D", lambda m=make, o=options: m(2, 2, **o), BY_RANK[rank])
        make = getattr(L, f"Conv{rank}DTranspose")
        small = BY_RANK[rank][:, :2] if rank == 1 else BY_RANK[rank][:, :2, :2]
        case(f"Conv{rank}DTranspose", lambda make=make: make(2, 2, strides=2), small)
    for rank in (1, 2):
        for kind in ("Depthwise", "Separable"):
            make = getattr(L, f"{kind}Conv{rank}D")
            arguments = (2,) if kind == "Depthwise" else (3, 2)
            case(
                f"{kind}Conv{rank}D",
                lambda m=make, a=arguments: m(*a, strides=2, padding="same", depth_multiplier=2),
                BY_RANK[rank],
            )
    case("Conv2D:strides", lambda: L.Conv2D(2, 3, strides=2, padding="same"), IMAGE)


def pooling_and_shapes():
    for rank, x in BY_RANK.items():
        for kind in ("Max", "Average"):
            make = getattr(L, f"{kind}Pooling{rank}D")
            case(f"{kind}Pooling{rank}D", lambda m=make: m(2, 1, padding="same"), x)
            case(f"Global{kind}Pooling{rank}D", getattr(L, f"Global{kind}Pooling{rank}D"), x)
            make = getattr(L, f"Adaptive{kind}Pooling{rank}D")
            case(f"Adaptive{kind}Pooling{rank}D", lambda m=make: m(2), x)
        for name in (f"ZeroPadding{rank}D", f"Cropping{rank}D", f"UpSampling{rank}D"):
            case(name, getattr(L, name), x)
    for method in ("bilinear", "bicubic"):
        make = lambda m=method: L.UpSampling2D(2, interpolation=m)  # noqa: E731
        case(f"UpSampling2D:{method}", make, IMAGE)
    for method in ("bilinear", "nearest", "area"):
        make = lambda m=method: L.Resizing(3, 5, interpolation=m)  # noqa: E731
        case("Resizing" if method == "bilinear" else f"Resizing:{method}", make, IMAGE)
    case("CenterCrop", lambda: L.CenterCrop(2, 3), IMAGE)
    case("Flatten", L.Flatten, IMAGE)
    case("Reshape", lambda: L.Reshape((-1,)), IMAGE)
    case("Permute", lambda: L.Permute((2, 1)), SEQUENCE)
    case("RepeatVector", lambda: L.RepeatVector(2), ROWS)
    case("Identity", L.Identity, ROWS)
    case("Masking", L.Masking, SEQUENCE)
    case("Rescaling", lambda: L.Rescaling(0.1, 2.0), ROWS)


def normalisations():
    case("BatchNormalization", L.BatchNormalization, ROWS)
    case("BatchNormalization:images", lambda: L.BatchNormalization(axis=1), IMAGE)
    case("BatchNormalization:mask", L.BatchNormalization, SEQUENCE, mask=some(2, 3))
    case("LayerNormalization", lambda: L.LayerNormalization(axis=[1, 2]), SEQUENCE)
    case("GroupNormalization", lambda: L.GroupNormalization(2), normal(2, 2, 2, 4))
    case("RMSNormalization", L.RMSNormalization, ROWS)
    case("UnitNormalization", L.UnitNormalization, ROWS)
    case("Normalization", lambda: L.Normalization(mean=1.0, variance=2.0), ROWS)
    case("SpectralNormalization", lambda: L.SpectralNormalization(L.Dense(3)), ROWS)


def attention():
    pair = [normal(2, 3, 2), normal(2, 4, 2)]
    case("Attention", lambda: L.Attention(True, "concat", dropout=0.2), pair)
    case("Attention:causal", lambda: L.Attention(True), pair, use_causal_mask=True)
    case("AdditiveAttention", L.AdditiveAttention, pair, mask=[some(2, 3), some(2, 4)])
    case(
        "MultiHeadAttention",
        lambda: L.MultiHeadAttention(1, 2, dropout=0.2),
        *pair,
        query_mask=some(2, 3),
    )
    case("GroupedQueryAttention", lambda: L.GroupQueryAttention(2, 2, 1), *pair)


def recurrent():
    case("SimpleRNN", lambda: L.SimpleRNN(2, return_sequences=True), SEQUENCE)
    case("GRU", lambda: L.GRU(2, go_backwards=True), SEQUENCE, mask=some(2, 3))
    case("LSTM", lambda: L.LSTM(2, dropout=0.3, recurrent_dropout=0.3), SEQUENCE)
    case("SimpleRNN:unrolled", lambda: L.SimpleRNN(2, unroll=True), SEQUENCE)
    case("RNN", lambda: L.RNN(L.SimpleRNNCell(2)), SEQUENCE)
    # One cell after another, each with its states.
    cells = "StackedRNNCells, SimpleRNNCell, GRUCell, LSTMCell"
    states = [[normal(4, 2)], [normal(4, 2)], [normal(4, 2), normal(4, 2)]]
    kinds = L.SimpleRNNCell, L.GRUCell, L.LSTMCell
    case(cells, lambda: L.StackedRNNCells([cell(2) for cell in kinds]), ROWS, states)
    case("ConvLSTM1D", lambda: L.ConvLSTM1D(1, 2), normal(1, 2, 3, 1))
    # One step: what a loop adds is the same for all three.
    case("ConvLSTM2D:unrolled", lambda: L.ConvLSTM2D(1, 2, unroll=True), normal(1, 1, 3, 3, 1))
    volumes = normal(1, 1, 2, 2, 2, 1)
    case("ConvLSTM3D:unrolled", lambda: L.ConvLSTM3D(1, 2, unroll=True), volumes)


def activations_and_noise():
    for name in ("ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"):
        case(name, getattr(L, name), ROWS)
    case("Softmax:mask", L.Softmax, ROWS, mask=some(4, 3))
    for name, function in vars(keras.activations).items():
        if inspect.isfunction(function) and name not in ("get", "serialize", "deserialize"):
            if name == "threshold":
                function = functools.partial(function, threshold=0.1, default_value=0.0)
            case(f"Activation:{name}", lambda f=function: L.Activation(f), normal(4, 4))
    for name in ("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"):
        case(name, lambda name=name: getattr(L, name)(0.4), ROWS)
    for rank, x in BY_RANK.items():
        case(
            f"SpatialDropout{rank}D", lambda rank=rank: getattr(L, f"SpatialDropout{rank}D")(0.4), x
        )
    case("ActivityRegularization", lambda: L.ActivityRegularization(0.1, 0.2), ROWS)
    short = {"frame_length": 8, "frame_step": 4, "fft_length": 8}
    case("STFTSpectrogram", lambda: L.STFTSpectrogram(**short), normal(1, 16, 1))


for declare in (dense_and_merging, convolutions, pooling_and_shapes, normalisations):
    declare()
for declare in (attention, recurrent, activations_and_noise):
    declare()

# Layers that act on data: of images with values between 0 and 1, and of others.
IMAGE_LAYERS = {
    "AugMix": {"value_range": (0, 1)},
    "AutoContrast": {"value_range": (0, 1)},
    "ContrastLimitedAdaptiveHistogramEqualization": {"value_range": (0, 1)},
    "CutMix": {},
    "MixUp": {},
    "Pipeline": {"layers": [L.RandomFlip()]},
    "RandAugment": {"value_range": (0, 1)},
    "RandomBrightness": {"factor": 0.2, "value_range": (0, 1)},
    "RandomColorDegeneration": {"factor": 0.3},
    "RandomColorJitter": {"value_range": (0, 1), "hue_factor": 0.1, "contrast_factor": 0.1},
    "RandomContrast": {"factor": 0.2},
    "RandomCrop": {"height": 3, "width": 3},
    "RandomElasticTransform": {},
    "RandomErasing": {"value_range": (0, 1), "fill_value": 0.5},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {"factor": 0.5},
    "RandomHue": {"factor": 0.2, "value_range": (0, 1)},
    "RandomInvert": {"value_range": (0, 1)},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 4, "value_range": (0, 1)},
    "RandomRotation": {"factor": 0.1},
    "RandomSaturation": {"factor": 0.2, "value_range": (0, 1)},
    "RandomSharpness": {"factor": 0.2, "value_range": (0, 1)},
    "RandomShear": {"x_factor": 0.1},
    "RandomTranslation": {"height_factor": 0.1, "width_factor": 0.1},
    "RandomZoom": {"height_factor": 0.1},
    "Solarization": {"value_range": (0, 1)},
}
OTHER_DATA_LAYERS = {
    "CategoryEncoding": {"num_tokens": 5, "output_mode": "multi_hot"},
    "Discretization": {"bin_boundaries": [1.0, 3.0], "output_mode": "one_hot"},
    "HashedCrossing": {"num_bins": 3, "output_mode": "one_hot"},
    "Hashing": {"num_bins": 3, "output_mode": "multi_hot"},
    "IntegerLookup": {"vocabulary": [1, 2, 3], "output_mode": "multi_hot"},
    "MelSpectrogram": {"fft_length": 8, "num_mel_bins": 3, "sampling_rate": 800, "max_freq": 400},
    "StringLookup": {"vocabulary": ["1", "2"], "output_mode": "multi_hot"},
    "TextVectorization": {"vocabulary": ["1", "2"], "output_mode": "multi_hot"},
}


# ------------------------------------------------------------------------------------- the page
def table():
    """`{class: verdict}` of docs/layers.md."""
    rows = re.findall(r"^\| `([^|]*)` \| ([^|]*?) \|", PAGE, re.MULTILINE)
    return {name: verdict for names, verdict in rows for name in names.split("`, `")}


def stock_layers():
    return {c.__name__ for _, c in inspect.getmembers(keras.layers, inspect.isclass)}


def test_the_page_has_every_layer_of_keras_once():
    named = re.findall(r"^\| `([^|]*)` \|", PAGE, re.MULTILINE)
    named = [name for names in named for name in names.split("`, `")]
    assert sorted(named) == sorted(set(named)), "a layer stands twice in docs/layers.md"
    missing = stock_layers() - set(named)
    assert not missing, (
        f"Keras has layers that docs/layers.md does not know: {sorted(missing)}. Add a case to "
        "this test and a row to the page."
    )
    assert set(table().values()) == set(VERDICTS)


def test_every_layer_is_swept_or_has_a_reason_not_to_be():
    swept = (
        {each for name in CASES for each in classes(name)}
        | set(IMAGE_LAYERS)
        | set(OTHER_DATA_LAYERS)
    )
    unchecked = {name for name, verdict in table().items() if verdict == UNCHECKED}
    assert swept & unchecked == set()
    assert stock_layers() - swept - unchecked == set()


# ------------------------------------------------------------------------------------ the sweep
def build(make, inputs, keywords):
    layer = make()
    with keras_layers.twice_differentiable(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer(*inputs, **{k: v for k, v in keywords.items() if k != "training"})
    for variable in layer.trainable_variables:
        variable.assign_add(0.1 * np.random.default_rng(1).normal(size=variable.shape))
    return layer


def error_of(name):
    make, inputs, keywords = CASES[name]
    return layer_error(build(make, inputs, keywords), *inputs, **keywords)


@pytest.fixture
def one_by_one(monkeypatch):
    """Counts how often forward mode was given up."""
    calls, stock = [], jacobian_products._one_by_one

    def count(*arguments):
        calls.append(1)
        return stock(*arguments)

    monkeypatch.setattr(jacobian_products, "_one_by_one", count)
    return calls


@pytest.mark.sweep(
    "Dense",
    "Conv2D",
    "BatchNormalization",
    "LayerNormalization",
    "MultiHeadAttention",
    "Embedding",
    "Softmax",
    "MaxPooling2D",
    "Dropout",
)
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CASES)
def test_layer_has_the_second_derivatives_that_the_page_says(name, one_by_one):
    (verdict,) = {table()[each] for each in classes(name)}
    if verdict == STOPS:
        with pytest.warns(UserWarning, match=rf"{name}\) stops gradients"):
            assert error_of(name) > 1e-3
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* stops gradients")
        assert error_of(name) <= BOUND
    is_looping = verdict == ONE_BY_ONE and not name.endswith(":unrolled")
    assert bool(one_by_one) == is_looping


# Each class once.
CORRECTED_CASES = [name for name in CASES if table().get(name) == CORRECTED]  # No variants.
CORRECTED_CASES += ["Activation:softsign", "UpSampling2D:bilinear"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", CORRECTED_CASES)
def test_layer_is_wrong_without_the_correction(name, monkeypatch):
    layer = build(*CASES[name])
    monkeypatch.setattr(tf_second_derivatives, "REPLACEMENTS", ())
    _, inputs, keywords = CASES[name]
    # TensorFlow's pooling refuses float64 with a TypeError, or has no kernel.
    with contextlib.suppress(LookupError, ValueError, TypeError, tf.errors.OpError):
        assert layer_error(layer, *inputs, **keywords) > 1e-3


@pytest.mark.usefixtures("float64")
def test_batch_renormalisation_stops_gradients_by_definition():
    layer = build(lambda: L.BatchNormalization(renorm=True), [ROWS], {})
    with pytest.warns(UserWarning, match=r"BatchNormalization\) stops gradients"):
        assert layer_error(layer, ROWS) > 1e-3


# ----------------------------------------------------------------------- layers that act on data
def behind(features):
    """A dense layer in float64; Keras computes some of what is in front in float32 only."""
    return L.Dense(2, "tanh", dtype="float64")(L.Flatten(dtype="float64")(features))


@pytest.mark.sweep()
@pytest.mark.parametrize("part", range(4))
def test_dense_layer_behind_image_layers_has_right_second_derivatives(part):
    inputs = keras.Input((6, 6, 3), dtype="uint8")
    images = L.Rescaling(1 / 255)(inputs)
    names = sorted(IMAGE_LAYERS)[part::4]
    layers = [getattr(L, name)(**IMAGE_LAYERS[name]) for name in names]
    assert {table()[name] for name in names} == {DATA}
    model = keras.Model(inputs, [behind(layer(images)) for layer in layers])
    data = np.random.default_rng(0).integers(0, 255, (2, 6, 6, 3)).astype("uint8")
    assert layer_error(model, data) <= BOUND


@pytest.mark.parametrize("name", OTHER_DATA_LAYERS)
def test_dense_layer_behind_data_layers_has_right_second_derivatives(name):
    assert table()[name] == DATA
    is_text = name in ("StringLookup", "TextVectorization")
    shape = {"MelSpectrogram": (16,), "TextVectorization": (1,)}.get(name, (3,))
    data = np.random.default_rng(0).integers(0, 5, (2, *shape))
    layer = getattr(L, name)(**OTHER_DATA_LAYERS[name])
    inputs = keras.Input(shape, dtype="string" if is_text else "int64")
    if name == "HashedCrossing":
        features = layer((inputs[:, 0], inputs[:, 1]))
    elif name == "MelSpectrogram":
        # Decibels, scaled so that the layer behind does not saturate.
        features = L.Rescaling(0.01)(layer(L.Rescaling(0.1)(inputs)))
    else:
        features = layer(inputs)
    data = data.astype(str).astype(object) if is_text else data
    assert layer_error(keras.Model(inputs, behind(features)), data) <= BOUND
