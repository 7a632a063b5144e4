"""What a worker process of guarded.py runs: `python -m byol_jax.data.readers.serve`, requests in, images out.

A request is a line of JSON on standard input; an answer a line of JSON on standard output, then the image's bytes, or
`reason` where there is no image. The process ends with its standard input. A file stays open until eight others were
asked for, so that a long stack's pages are looked up once.
"""

import json
import logging
import os
import signal
import sys
import warnings
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from byol_jax.data.readers.open import image_of, open_file
from byol_jax.data.readers.parquet_footer import column_sizes
from byol_jax.data.readers.reading import Opened, Reading
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import one_line

__all__ = ["main"]

OPEN_FILES = 8
MEMORY = 4 * 2**30
"""Bytes that the process may map."""


def main() -> None:
    """Answers until its input ends."""
    _limit()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    files: OrderedDict[Any, Opened] = OrderedDict()
    for line in sys.stdin.buffer:
        try:
            answer, content = _answer(json.loads(line), files)
        except UnusableImageError as error:
            answer, content = {"reason": str(error)}, b""
        _send(answers, answer, content)


def _limit() -> None:
    """No more memory than `MEMORY`, no core dumps, no Ctrl-C and no SIGTERM, no warnings and logs."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # whoever asks may still save what it has: it ends our input
        signal.signal(stop, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    logging.disable()
    with suppress(ImportError, OSError, ValueError):  # a system without such limits, or with lower ones
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _answer(request: dict[str, Any], files: OrderedDict[Any, Opened]) -> tuple[dict[str, Any], bytes | memoryview]:
    if request["what"] == "columns":
        return {"columns": _columns(request["path"])}, b""
    given = request["reading"]
    reading = Reading(**given | {"bands": None if given["bands"] is None else tuple(given["bands"])})
    opened = _open(request, reading, files)
    if request["what"] == "look":
        sizes, *rest = opened.contents
        return {"sizes": sizes, "rest": rest}, b""
    options = request["options"]
    size = None if options["size"] is None else tuple(options["size"])
    image, gaps = image_of(opened, request["index"], reading, **options | {"size": size})
    content = np.ascontiguousarray(image)
    facts = {"shape": content.shape, "dtype": content.dtype.name, "gaps": gaps, "bytes": content.nbytes}
    return facts, content.data.cast("B")


def _columns(path: str) -> list[list[tuple[str, int]]]:
    try:
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            return column_sizes(file.metadata)
    except Exception as error:  # pyarrow's and the disk's
        raise UnusableImageError(one_line(error, at_most=200)) from error


def _open(request: dict[str, Any], reading: Reading, files: OrderedDict[Any, Opened]) -> Opened:
    """A file that may still be open from a request before; one that has changed since is another."""
    path = Path(request["path"])
    try:
        status = os.stat(path)
    except OSError as error:
        raise UnusableImageError("no longer there" if not os.path.lexists(path) else error.strerror) from error
    key = (request["path"], request["reader"], reading, status.st_ino, status.st_size, status.st_mtime_ns)
    if key not in files:
        files[key] = open_file(request["reader"], path, reading, most_pixels=request["most_pixels"])
        if len(files) > OPEN_FILES:
            files.popitem(last=False)[1].close()
    files.move_to_end(key)
    return files[key]


def _send(pipe: BinaryIO, answer: dict[str, Any], content: bytes | memoryview) -> None:
    pipe.write(json.dumps(answer).encode() + b"\n")
    pipe.write(content)
    pipe.flush()


if __name__ == "__main__":
    main()
