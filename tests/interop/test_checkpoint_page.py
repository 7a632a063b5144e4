"""docs/checkpoints.md has a row for every case, none is too far off, and some are measured anew."""

import re

import pytest

from tests.pages.checkpoint_cases import CASES, Networks, Recorded
from tests.pages.checkpoints import LIMIT, PAGE, measure, page

TRANSFORMER = "vit_tiny_patch16_224"
ROW = re.compile(r"\| ([^|]+) \| ([^|]+) \| (\S+) \| (\S+) \|")


def test_the_page_has_every_case_and_no_number_is_large():
    rows = [match for line in PAGE.read_text(encoding="utf-8").splitlines() if (match := ROW.fullmatch(line))][1:]
    assert [(row[1], row[2]) for row in rows] == [(case.source, case.network) for case in CASES]
    assert PAGE.read_text(encoding="utf-8") == page([row[0] for row in rows]), "run python -m tests.pages.checkpoints"
    for row, case in zip(rows, CASES, strict=True):
        read_only = not isinstance(case.kind, Networks) and getattr(case.kind, "layout", None) is None
        numbers = [float(row[3])] if read_only else [float(row[3]), float(row[4])]
        limit = 1e-4 if isinstance(case.kind, Recorded) else LIMIT
        assert all(0 <= number <= limit for number in numbers), row[0]
    assert {case.source.partition(" ")[0].rstrip(",") for case in CASES} == {
        *("byol-pytorch", "lightly", "solo-learn", "DeepMind", "torchvision", "timm")
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=case.network) for case in CASES if case.network in ("a ResNet of 4 blocks", TRANSFORMER)],
)
def test_a_row_is_what_is_measured(case):
    numbers = measure(case)
    assert all(number is not None and number <= LIMIT for number in numbers), numbers
