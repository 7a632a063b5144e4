"""One message for everything in which two sets of named arrays differ. Collects, and raises only when told to."""

import difflib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from byol_jax.errors import StateDictMismatchError
from interop.formats.containers import short_list

__all__ = ["Mismatch", "compare_names"]

SUGGESTIONS = 24
"""How many missing names get a "nearest" beside them: matching is quadratic, and fewer are shown."""


@dataclass
class Mismatch:
    """What is wrong so far: each entry is a leaf's name and, in brackets, what more there is to say."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any((self.missing, self.unexpected, self.shapes, self.dtypes, self.values))

    def deduplicate(self) -> None:
        """Drops repeated entries: several leaves may be parts of one of torch's tensors."""
        for kind in (self.shapes, self.dtypes, self.values):
            kind[:] = dict.fromkeys(kind)

    def raise_if_any(self, what: str, *, hint: str = "") -> None:
        """Raises one line that counts everything and names the first of each kind, or returns.

        Raises:
            StateDictMismatchError: something was collected.
        """
        kinds: Sequence[tuple[str, list[str]]] = (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("wrong shape", self.shapes),
            ("wrong dtype", self.dtypes),
            ("wrong value", self.values),
        )
        parts = [f"{len(items)} {kind}: {short_list(items)}" for kind, items in kinds if items]
        if parts:
            raise StateDictMismatchError(f"{what}; {'; '.join(parts)}{f'; {hint}' if hint else ''}")


def compare_names(expected: Collection[str], given: Collection[str]) -> Mismatch:
    """The names that are missing, each with the nearest unexpected one, and those that are unexpected.

    Example:
        >>> compare_names(["fc.weight"], ["fc.weigth"]).missing
        ['fc.weight (nearest: fc.weigth)']
    """
    known, there = set(expected), set(given)
    unexpected = [name for name in given if name not in known]
    missing = [name for name in expected if name not in there]
    suggested = [_with_nearest(name, unexpected) for name in missing[:SUGGESTIONS]]
    return Mismatch(missing=suggested + missing[SUGGESTIONS:], unexpected=unexpected)


def _with_nearest(name: str, candidates: Iterable[str]) -> str:
    alike = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.7)
    return f"{name} (nearest: {alike[0]})" if alike else name
