"""What a file is that somebody gives as data and that is none, by its name alone: words for a message.

byol_jax/data/readers/foreign.py knows by their content those that are named as images.
"""

import os

__all__ = ["describe_data"]

_TENSORS = 'np.save("images.npy", array) writes one that is read'
_DATA: tuple[tuple[str, str], ...] = (
    ("jpg jpeg png webp bmp tif tiff gif dcm dicom", "a single image: give the folder that holds the images"),
    ("zip 7z rar tgz", "an archive: unpack it, and give the folder with the images"),
    ("gz bz2 xz zst", "compressed: decompress it, and give what is in it"),
    ("pt pth pkl pickle ckpt", f"a pickle, which can run code and isn't read as images: {_TENSORS}"),
    ("safetensors", f"a file of weights, no images: of tensors that are images {_TENSORS}"),
    ("h5 hdf5 mat", f"an HDF5 or MATLAB file, which isn't read: {_TENSORS}"),
)
"""Endings of names, and what such a file is. Those of images are the readers', which load NumPy."""


def describe_data(name: str) -> str | None:
    """What a file given as data is by its name, and the way out, in one line; None where nothing is known.

    Example:
        >>> describe_data("photos.ZIP")
        'an archive: unpack it, and give the folder with the images'
    """
    ending = os.path.splitext(name)[1].lower().removeprefix(".")
    return next((words for endings, words in _DATA if ending in endings.split()), None)
