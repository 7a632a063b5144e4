"""What the names of shards say of the split that they belong to: train and val aren't mixed unless somebody says so."""

import fnmatch
import glob
import itertools
import os
import re
from collections.abc import Sequence

from byol_jax.errors import DataError

__all__ = ["say_splits"]

_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "dev": "dev",
}
"""Words that name a split, in a file's name or a folder's."""

_NUMBERED = re.compile(r"(.+?)-\d+-of-\d+(.*)\Z")
_BRACES = re.compile(r"\{[^{}]*\}")


def say_splits(place: str, folder: str, names: Sequence[str]) -> tuple[str, ...]:
    """A line where some shards are named as those of a split and the others aren't.

    Args:
        place: what a person gave. folder: that the shards lie below, as a message names it.
        names: of the shards, below that folder, sorted.

    Raises:
        DataError: they are of several splits, by words or by what stands before "-00000-of-00128", and {a,b} of the
            place doesn't name all these words.

    Example:
        >>> say_splits("shards", "shards", ["more-0.tar", "train-0.tar", "train-1.tar"])[0].partition(":")[2]
        " all are read; for train alone give 'shards/train-*.tar'"
    """
    below = glob.escape(os.path.join(folder, ""))
    fronts = sorted({found.groups() for name in names if (found := _NUMBERED.match(name))})
    if len({os.path.basename(front) for front, _ in fronts}) > 1:
        some = ", ".join(repr(f"{below}{glob.escape(front)}-*{glob.escape(end)}") for front, end in fronts[:4])
        raise DataError(f"{place}: holds several splits: give one of them: {some}")
    splits: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        splits.setdefault(_split_of(name), []).append(name)
    others = splits.pop((), [])
    named = set(itertools.chain.from_iterable(map(_words, _BRACES.findall(place))))
    if named.issuperset(itertools.chain.from_iterable(splits)):
        return ()
    patterns = (_pattern(some, names) for _, some in sorted(splits.items()))
    pattern = next((repr(below + one) for one in patterns if one is not None), None)
    if len(splits) > 1:
        found = ", ".join(f"{' and '.join(words)} ({splits[words][0]!r})" for words in sorted(splits))
        one = f", {pattern} for one" if pattern else ""
        raise DataError(
            f"{place}: holds several splits, {found}: give one of them{one}, or name all in a pattern: {{a,b}}"
        )
    if not others:
        return ()
    split, some = splits.popitem()
    word = " and ".join(split)
    return (
        f"{len(some)} of {len(names)} shards are named {word} ({some[0]!r} for one), the others aren't"
        f" ({others[0]!r} for one): all are read; for {word} alone give {pattern or 'a pattern'}",
    )


def _pattern(some: Sequence[str], names: Sequence[str]) -> str | None:
    """A pattern that of these names fits some, by their first with any number in it; None where it fits others.

    Example:
        >>> _pattern(["train-0.tar", "train-1.tar"], ["train-0.tar", "train-1.tar", "val-0.tar"])
        'train-*.tar'
    """
    parts = re.sub(r"\d+", "*", glob.escape(some[0])).split("/")

    def fits(name: str) -> bool:
        own = name.split("/")
        return len(own) == len(parts) and all(map(fnmatch.fnmatchcase, own, parts))

    return "/".join(parts) if list(filter(fits, names)) == list(some) else None


def _split_of(name: str) -> tuple[str, ...]:
    """What a shard's name says of its split: its last part that says anything.

    Example:
        >>> _split_of("train/photos-val-000.tar"), _split_of("test/part-000.tar"), _split_of("photos-000.tar")
        (('val',), ('test',), ())
    """
    return next(filter(None, map(_words, reversed(name.split("/")))), ())


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted({_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in _WORDS}))
