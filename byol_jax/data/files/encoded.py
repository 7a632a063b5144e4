"""Encoded images by name, wherever they lie: what a folder, tar shards and Parquet files have in common.

All that is done with a folder's files is done with these: they are looked through once, left out, labelled and
remembered; as a `Dataset` they are decoded when they are asked for.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from byol_jax.data.dataset import Dataset
from byol_jax.data.files.decoder import Decoder, FileImages
from byol_jax.data.files.file_list import Listing, check_kind
from byol_jax.data.files.kept_list import KeptList, encode_kept_list, identity_of, judge, load_kept_list, save_kept_list
from byol_jax.data.files.survey import Survey
from byol_jax.data.fit import common_shape, evaluation_crop, load_size
from byol_jax.data.member import Root
from byol_jax.data.order import Blocks, epoch_order
from byol_jax.data.readers.picture import WHOLE
from byol_jax.data.readers.pillow_header import uniform_warnings
from byol_jax.data.readers.reading import Reading
from byol_jax.data.taker import Taker
from byol_jax.errors import DataError

__all__ = ["EncodedImages", "open_encoded"]

ANY_RANGE = "float32 of any range: give what becomes [0, 1], value_range=(low, high) or --value-range auto"


def _no_blocks(names: Sequence[str]) -> None:
    del names


class EncodedImages(NamedTuple):
    """Images that are still to be decoded.

    Attributes:
        root: `root / name` is an image's file, or a `Member`.
        listing: the names, sorted, with sizes, and what can't be used.
        read_labels: of the names that a list uses, labels [count] int32 and the classes' names, where they have any.
            Raises DataError where there are no labels.
        kind: the word for it in a dataset's identity.
        blocks: of the names that are used, the blocks without which none of their images can be read; None where each
            is read by itself, so that an epoch may have any order.
        remarks, notes: lines for a person, as a `Dataset` has them.
        kept: what is kept of where they lie for a next start: by a file name's ending, as a `Dataset` has it.
    """

    root: Root
    listing: Listing
    read_labels: Callable[[KeptList], tuple[np.ndarray, tuple[str, ...] | None]]
    kind: str
    blocks: Callable[[Sequence[str]], Blocks | None] = _no_blocks
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kept: Mapping[str, bytes] = MappingProxyType({})


class _Wanted(NamedTuple):
    """How images are wanted, whether it is a first look or a later one; `open_dataset` documents the arguments."""

    image_size: int | tuple[int, int] | None
    fit: str
    reading: Reading
    workers: int
    progress: Callable[[int, int], None] | None
    cache_bytes: int

    @property
    def takes_common_shape(self) -> bool:
        """Whether images get a shape that they have in common."""
        return self.fit == "none" and self.image_size is not None

    def size_of(self, sizes: Mapping[int, Sequence[tuple[int, int]]]) -> tuple[int, int] | None:
        """(height, width) that images get; None where they keep their own.

        Args:
            sizes: that they have, by file; looked at only where they get a common shape.
        """
        size = None if self.image_size is None else load_size(self.image_size)
        if size is None or not self.takes_common_shape:
            return size
        return common_shape(list(itertools.chain.from_iterable(sizes.values())), size)

    def survey(self, root: Root, names: Sequence[str], read_by: Mapping[str, tuple[str, int]]) -> Survey:
        """A look at files."""
        return Survey(root, names, self.reading, read_by=read_by, workers=self.workers, progress=self.progress)

    def decoder(self, survey: Survey, size: tuple[int, int], dtype: str) -> Decoder:
        """The pixels of the files that a survey knows."""
        images = FileImages(survey.root, survey.names, survey.counts, survey.readers, self.reading)
        shape, fit = (*size, self.reading.num_channels), None if self.image_size is None else self.fit
        return Decoder(images, shape, dtype=dtype, fit=fit, cache_bytes=self.cache_bytes)


class _Look(NamedTuple):
    """What a look at images comes to.

    Attributes:
        kept: the list of what is used.
        decode: gives pixels; its files are those of the listing, or those of a list of an earlier start.
        failed: why files that `decode` has aren't on the list, by their numbers.
        spoilt: why files that are on the list can't be used now, by their numbers.
        added: (name, reason) of files that are there now, and aren't on the list.
        remarks, notes, narrow: as a `Dataset` has them.
    """

    kept: KeptList
    decode: Decoder
    failed: Mapping[int, str] = MappingProxyType({})
    spoilt: Mapping[int, str] = MappingProxyType({})
    added: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    narrow: str | None = None


def _first_look(source: EncodedImages, wanted: _Wanted, *, dtype: str | None, scan_limit: int) -> _Look:
    """Looks through all images: which can be used, in which dtype and size, and what is to be said of them."""
    if source.kind == "folder":
        check_kind(source.root, source.listing)
    survey = wanted.survey(source.root, source.listing.files.names, {})
    with uniform_warnings():
        reasons = survey.look_ahead()
        measured = dtype is None and survey.is_measured(reasons)
        guess = dtype or ("float32" if measured else _dtype(is_deep=survey.first_depth(reasons) in WHOLE))
        reasons |= survey.strangers(guess)  # these give a folder no shape
        sizes = survey.sizes() if wanted.takes_common_shape else {}
        size = wanted.size_of(sizes) or survey.first_size(reasons)
        decode = wanted.decoder(survey, size, guess)

        reasons = survey.failures(decode.file if len(decode.images) <= scan_limit else None, reasons)
        used = dtype or ("float32" if measured else _dtype(is_deep=survey.is_deep(reasons)))
        reasons |= survey.strangers(used)
        is_grey = used == "uint16" and survey.is_grey(reasons)
        doubts, mixture = survey.doubts(reasons, dtype=used), survey.mixture(reasons, used)
        notes, gaps, unused = survey.notes(reasons), decode.say_gaps(reasons), survey.unused()
        size = wanted.size_of({file: some for file, some in sizes.items() if file not in reasons}) or size
        if (used, size) != (decode.dtype.name, decode.shape[:2]):  # all are decoded again when they are asked for
            decode = wanted.decoder(survey, size, used)
    kept = judge(source.root, source.listing, reasons)._replace(
        shape=size if wanted.takes_common_shape else None, dtype=used, is_grey=is_grey, read_by=survey.read_by(reasons)
    )
    return _Look(
        kept,
        decode,
        failed=reasons,
        remarks=(*unused, *gaps, *(doubts if used == "uint8" else mixture)),
        notes=notes,
        narrow=next(iter(doubts), None) if used == "uint16" else None,
    )


def _look_again(source: EncodedImages, wanted: _Wanted, kept: KeptList) -> _Look:
    """Takes the images, their dtype, their common size and their readers from the list that an earlier start made.

    They aren't looked through. Of files that were touched since then, and have the size in bytes that they had, headers
    are read; the list gets their times, but for those that can't be used now.
    """
    touched = kept.touched(source.listing)
    survey = wanted.survey(source.root, kept.files.names, kept.read_by)
    with uniform_warnings():
        spoilt = survey.look_again(touched, kept.dtype)
        known = kept.shape if wanted.takes_common_shape else None  # an earlier start may have had another fit
        sizes = survey.sizes() if wanted.takes_common_shape and known is None else {}
        size = known or wanted.size_of(sizes) or survey.first_size({})
        decode = wanted.decoder(survey, size, kept.dtype)
    added, notes = kept.additions(source.listing), ()
    if len(touched):
        kept = kept.at_times_of(source.listing, np.setdiff1d(touched, [*spoilt]))
        notes = (
            f"{len(touched)} of {len(kept.files)} files were changed or copied since the first start, and have the size"
            " that they had: looked at again",
        )
    return _Look(kept, decode, spoilt=spoilt, added=added, notes=notes)


def open_encoded(
    source: EncodedImages,
    *,
    image_size: int | tuple[int, int] | None,
    fit: str,
    reading: Reading,
    with_labels: bool | None,
    workers: int,
    progress: Callable[[int, int], None] | None,
    verdict_path: Path | None,
    scan_limit: int,
    cache_bytes: int,
    dtype: str | None,
) -> Dataset:
    """Images by name as a dataset; `open_dataset` documents the arguments."""
    wanted = _Wanted(image_size, fit, reading, workers, progress, cache_bytes)
    earlier = verdict_path if verdict_path is not None and verdict_path.exists() else None
    if earlier is None:
        look = _first_look(source, wanted, dtype=dtype, scan_limit=scan_limit)
    else:
        look = _look_again(source, wanted, load_kept_list(earlier, source.listing, folder=source.root))
    beside = source.kept  # of the source only this is held on to
    kept, decode, added = look.kept, look.decode, look.added
    used, image_names, numbers = kept.dtype, kept.image_names, decode.images.without(look.failed)
    kept = kept if kept.blocks is not None else kept._replace(blocks=source.blocks(image_names))
    labels, class_names, without = _read_labels(source, kept, wanted=with_labels)
    if verdict_path is not None and earlier is None:
        save_kept_list(verdict_path, kept, beside=beside)

    taker = Taker(decode, numbers, labels, shape=decode.shape, dtype=used, workers=workers)
    taker.leave_out({image: reason for file, reason in look.spoilt.items() for image in decode.images.of_file(file)})
    return Dataset(
        take=taker.take,
        count=len(numbers),
        image_shape=decode.shape,
        identity=identity_of(kept, kind=source.kind),
        labels=labels,
        class_names=class_names,
        names=image_names,
        evaluation_crop=None if image_size is None else evaluation_crop(image_size, fit, decode.shape),
        remarks=(*source.remarks, *look.remarks),
        dtype=used,
        range_is_known=used == "uint8" or (used == "uint16" and not kept.is_grey and not reading.is_as_stored),
        narrow=ANY_RANGE if used == "float32" else look.narrow,
        notes=(*source.notes, *look.notes, *without),
        order=epoch_order if kept.blocks is None else kept.blocks.order(),
        list_skipped=lambda: (
            *kept.skipped,
            *added,
            *((image_names[index], reason) for index, reason in taker.failures().items()),
        ),
        kept=lambda: {".json": encode_kept_list(kept), **beside},
    )


def _read_labels(
    source: EncodedImages, kept: KeptList, *, wanted: bool | None
) -> tuple[np.ndarray | None, tuple[str, ...] | None, tuple[str, ...]]:
    """Labels and the classes' names; where they are wanted if any (None), also a line on why there are none."""
    if wanted is False:
        return None, None, ()
    try:
        return *source.read_labels(kept), ()
    except DataError as error:
        if wanted is not None:
            raise
        return None, None, (f"no labels: {error}",)


def _dtype(*, is_deep: bool) -> str:
    return "uint16" if is_deep else "uint8"
