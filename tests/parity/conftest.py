"""What comparisons with byol-pytorch run under."""

import pytest

from tests.parity import reference


@pytest.fixture
def one_thread():
    with reference.one_thread():
        yield
