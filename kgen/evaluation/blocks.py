"""Blocks of rows, which bound the memory, and the progress of work on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Progress = Callable[[int, int], None]


def row_blocks(
    num_rows: int, size: int, progress: Progress | None = None
) -> Iterator[slice]:
    """Yield the rows of each block in turn.

    Args:
        num_rows: Number of all rows.
        size: Rows of a block; the last one may have fewer.
        progress: Called after each block with the number of processed rows, and of all.
    """
    for start in range(0, num_rows, size):
        stop = min(start + size, num_rows)
        yield slice(start, stop)
        if progress:
            progress(stop, num_rows)


def in_blocks(
    function: Callable[..., np.ndarray], *arrays: np.ndarray, size: int
) -> np.ndarray:
    """Apply a function to blocks of rows, and join the results.

    Args:
        function: From as many arrays to an array of as many rows.
        *arrays: Arrays of n rows, n at least 1.
        size: Rows of a block.
    """
    blocks = row_blocks(len(arrays[0]), size)
    return np.concatenate([function(*(a[rows] for a in arrays)) for rows in blocks])
