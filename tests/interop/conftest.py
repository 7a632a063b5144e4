"""What the tests of weight files share."""

import pytest
from two_shards import FIRST, INDEX, SECOND, names
from weight_samples import small_state_dict

from interop import save_state_dict


@pytest.fixture
def shards(tmp_path):
    """A folder with an index and two shards, and what they hold."""
    state_dict = small_state_dict()
    save_state_dict(tmp_path / "model.safetensors", state_dict, max_shard_bytes=448)
    assert names(tmp_path) == [FIRST, SECOND, INDEX]
    return tmp_path, state_dict
