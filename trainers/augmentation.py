"""Augmentation of images as a Keras layer, so that its random draws are state of the model.

A search replays that state like all other: both modes of differentiation see the same images, and
so does a search that is resumed. To load a saved model that has the layer, import this module.
"""

import keras
import tensorflow as tf

PADDING = 4
CUTOUT = 16
PARTS = ("crop", "flip", "cutout")


@keras.saving.register_keras_serializable(package="trainers")
class Augmentation(keras.layers.Layer):
    """Random crops, mirror images and squares cut out, each image its own; only in training.

    In this order: a crop as large as the image from the image with a border, all places alike; a
    mirror image, left and right exchanged, of every second image; zeros in a square around a point
    of the image, all points alike. The square may reach beyond the image.

    Args:
        padding: Width of the border, for crops. Defaults to 0: no crops.
        flip: Whether to mirror images. Defaults to `False`.
        cutout: Length of the square, even. Defaults to 0: none.
        border: The border's value, one number per channel. Defaults to zeros.
        seed: Defaults to one drawn at random.

    Example:

    >>> layer = Augmentation(padding=4, flip=True)
    >>> layer(images, training=True).shape == images.shape
    True
    """

    def __init__(self, padding=0, flip=False, cutout=0, border=None, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding
        self.flip = flip
        self.cutout = cutout
        self.border = None if border is None else [float(value) for value in border]
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, images, training=False):
        if not training:
            return images
        if self.padding or self.flip:
            images = self._crop_and_flip(images)
        return self._cut_out(images) if self.cutout else images

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "padding": self.padding,
            "flip": self.flip,
            "cutout": self.cutout,
            "border": self.border,
            "seed": self.seed,
        }

    def _crop_and_flip(self, images):
        """Looks up where each pixel comes from; beyond the image is the border."""
        height, width, channels = images.shape[1:]
        count = tf.shape(images)[0]
        rows, columns = tf.range(height)[tf.newaxis, :], tf.range(width)[tf.newaxis, :]
        if self.flip:
            columns = tf.where(self._integers(count, 2) == 1, width - 1 - columns, columns)
        if self.padding:
            rows += self._integers(count, 2 * self.padding + 1) - self.padding
            columns += self._integers(count, 2 * self.padding + 1) - self.padding
        rows, columns = rows[:, :, tf.newaxis], columns[:, tf.newaxis, :]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        places = tf.where(inside, rows * width + columns, 0)
        pixels = tf.reshape(images, (count, height * width, channels))
        pixels = tf.gather(pixels, tf.broadcast_to(places, (count, height, width)), batch_dims=1)
        border = tf.constant(self.border or [0.0] * channels, images.dtype)
        return tf.where(inside[..., tf.newaxis], pixels, border)

    def _cut_out(self, images):
        height, width = images.shape[1:3]
        count = tf.shape(images)[0]
        rows = tf.range(height)[tf.newaxis, :] - self._integers(count, height)
        columns = tf.range(width)[tf.newaxis, :] - self._integers(count, width)
        half = self.cutout // 2
        rows, columns = (rows >= -half) & (rows < half), (columns >= -half) & (columns < half)
        cut = rows[:, :, tf.newaxis, tf.newaxis] & columns[:, tf.newaxis, :, tf.newaxis]
        return tf.where(cut, tf.zeros((), images.dtype), images)

    def _integers(self, count, end):
        """For each image a whole number below `end`, shape [count, 1]."""
        return keras.random.randint((count, 1), 0, end, dtype="int32", seed=self.seed_generator)


def check(name):
    """Checks a name such as `"none"`, `"crop_flip"` or `"crop_flip_cutout"`."""
    parts = _parts(name)
    if parts != [part for part in PARTS if part in parts]:
        raise ValueError(
            f"`augmentation` must be 'none', or one or more of {', '.join(PARTS)} in this order, "
            f"joined by _, such as 'crop_flip'. Received: augmentation={name!r}"
        )


def make(name, input_shape, border=None):
    """The `Augmentation` of a name.

    Args:
        name: `"none"`, or one or more of `crop` (from a border of 4), `flip` and `cutout` (squares
            of 16x16) in this order, joined by `_`.
        input_shape: Shape of one image, (height, width, channels).
        border: The border's value, one number per channel. Defaults to zeros.

    Returns:
        An `Augmentation`, or `None` for `"none"`.

    Raises:
        ValueError: The name is unknown, or the images are too small for it.

    Example:

    >>> make("crop_flip", (32, 32, 3)).padding
    4
    """
    check(name)
    parts = _parts(name)
    if "cutout" in parts and min(input_shape[:2]) < CUTOUT:
        raise ValueError(
            f"Cutout removes squares of {CUTOUT}x{CUTOUT}: too large for these images. "
            f"Received: augmentation={name!r}, input_shape={tuple(input_shape)}"
        )
    if not parts:
        return None
    return Augmentation(
        padding=PADDING if "crop" in parts else 0,
        flip="flip" in parts,
        cutout=CUTOUT if "cutout" in parts else 0,
        border=border,
        name="augmentation",
    )


def _parts(name):
    return [] if name == "none" else str(name).split("_")
