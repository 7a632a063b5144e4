"""docs/operators.md lists what the tables have, no more and no less."""

from interop.trace.ops.table import OPERATORS
from tests.pages.operators import PAGE, families, page


def test_every_operator_is_in_one_family() -> None:
    assert sorted(name for names in families().values() for name in names) == sorted(OPERATORS)


def test_the_page_is_as_the_tables_are() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.pages.operators writes it anew"
