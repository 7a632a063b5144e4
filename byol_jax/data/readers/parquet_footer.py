"""What stands at a Parquet file's end. pyarrow ends the process in which it meets some kinds of damage there."""

from typing import Any

__all__ = ["column_sizes"]


def column_sizes(metadata: Any) -> list[list[tuple[str, int]]]:
    """Of each row group the names of its columns, and their bytes when they are decompressed.

    Args:
        metadata: pyarrow's, which ends its process where some parts of a file's end are damaged.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    found = ([group.column(number) for number in range(group.num_columns)] for group in groups)
    return [[(one.path_in_schema, one.total_uncompressed_size) for one in columns] for columns in found]
