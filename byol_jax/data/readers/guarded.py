"""Files read in processes of their own, since a decoder in C can take its process with it: that costs one file.

Codecs of TIFF and DICOM are many and run on whatever a file holds. So these files are read in worker processes, one for
each thread that asks at the same time, which live on and are started again where they die. A worker may take 4 GiB of
memory (where the system has such limits), and a minute for an image. What it sends back is the finished image, resized.
A file is asked for once more, in a fresh worker, before it is blamed: the first may have been ended by somebody else.
.npy files are read here, NumPy alone has to do with them. What stands at a Parquet file's end is looked at in a worker.
The workers' own program: serve.py.
"""

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from byol_jax.data.member import Member
from byol_jax.data.readers.open import READERS, image_of, open_file
from byol_jax.data.readers.reading import Contents, Reading
from byol_jax.data.unusable import UnusableImageError

__all__ = ["Workers", "column_sizes", "look", "read"]

SECONDS = 60.0
"""For one image; a decoder that takes longer is taken to hang."""


def look(reader: str, path: Path | Member, reading: Reading) -> Contents:
    """What a file holds; its pixels aren't decoded.

    Raises:
        UnusableImageError: it can't be used.
    """
    path = _on_disk(path)
    if READERS[reader].package is None:
        opened = open_file(reader, path, reading, most_pixels=Image.MAX_IMAGE_PIXELS)
        opened.close()
        return opened.contents
    answer, _ = _workers().ask(_request("look", reader, path, reading))
    return Contents(tuple((height, width) for height, width in answer["sizes"]), *answer["rest"])


def read(
    reader: str,
    path: Path | Member,
    index: int,
    reading: Reading,
    *,
    size: tuple[int, int] | None,
    fit: str,
    dtype: str,
) -> tuple[np.ndarray, float]:
    """Image number `index` of a file, `dtype` [h, w, C], and which part of its numbers were gaps.

    Raises:
        UnusableImageError: it can't be decoded, or took the process that decoded it with it.
    """
    path = _on_disk(path)
    options: dict[str, Any] = {"size": size, "fit": fit, "dtype": dtype}
    if READERS[reader].package is None:
        opened = open_file(reader, path, reading, most_pixels=Image.MAX_IMAGE_PIXELS)
        try:
            return image_of(opened, index, reading, **options)
        finally:
            opened.close()
    answer, content = _workers().ask(_request("read", reader, path, reading) | {"index": index, "options": options})
    return np.frombuffer(content, answer["dtype"]).reshape(answer["shape"]), answer["gaps"]


def column_sizes(path: Path) -> list[list[tuple[str, int]]]:
    """What parquet_footer.py's `column_sizes` gives of a Parquet file.

    Raises:
        UnusableImageError: it can't be opened, or took the process that looked at it with it.
    """
    answer, _ = _workers().ask({"what": "columns", "path": str(path.absolute())})
    return [[(name, size) for name, size in group] for group in answer["columns"]]


def _on_disk(path: Path | Member) -> Path:
    if not isinstance(path, Path):
        raise UnusableImageError("only a file of its own is read so, not a part of a shard")
    return path


def _request(what: str, reader: str, path: Path, reading: Reading) -> dict[str, Any]:
    return {
        "what": what,
        "reader": reader,
        "path": str(path.absolute()),
        "reading": asdict(reading),
        "most_pixels": Image.MAX_IMAGE_PIXELS,
    }


class Workers:
    """Processes that answer requests, as many as are asked at once; any thread may ask.

    Args:
        seconds: that an answer may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds, self.idle = seconds, []
        self.lock = threading.Lock()

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """The answer's facts and its bytes.

        Raises:
            UnusableImageError: the answer is that it can't be read, or there is none.
        """
        try:
            answer, content = self._attempt(self._waiting() or _start(), request)
        except UnusableImageError:  # that says nothing of the file yet: a worker may have been ended from outside
            answer, content = self._attempt(_start(), request)
        if "reason" in answer:
            raise UnusableImageError(answer["reason"])
        return answer, content

    def _waiting(self) -> subprocess.Popen | None:
        """A process that waits, unless it died while nobody asked."""
        with self.lock:
            process = self.idle.pop() if self.idle else None
        if process is not None and process.poll() is not None:
            _end(process)
            return None
        return process

    def _attempt(self, process: subprocess.Popen, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
        """What a process answers, a reason too.

        Raises:
            UnusableImageError: nothing; it is at its end.
        """
        is_late = threading.Event()
        timer = threading.Timer(self.seconds, lambda: (is_late.set(), process.kill()))
        timer.start()
        try:
            answer, content = _exchange(process, request)
        except (OSError, ValueError, EOFError) as error:  # it died, before or while it answered
            _end(process)
            raise UnusableImageError(_cause(process, self.seconds if is_late.is_set() else None)) from error
        except BaseException:  # Ctrl-C in between: what it would answer later belongs to no request
            _end(process)
            raise
        finally:
            timer.cancel()
        with self.lock:
            self.idle.append(process)
        return answer, content

    def close(self) -> None:
        """Ends the processes that wait."""
        with self.lock:
            processes, self.idle = self.idle, []
        for process in processes:
            _end(process)


def _exchange(process: subprocess.Popen, request: dict[str, Any]) -> tuple[dict[str, Any], bytearray]:
    requests: Any = process.stdin  # both are pipes
    answers: Any = process.stdout
    requests.write(json.dumps(request).encode() + b"\n")
    requests.flush()
    answer = json.loads(answers.readline())  # an empty line, at its end, is a ValueError
    content = bytearray(answer.get("bytes", 0))
    rest = memoryview(content)
    while len(rest):
        count = answers.readinto(rest)
        if not count:
            raise EOFError("cut short")
        rest = rest[count:]
    return answer, content


def _start() -> subprocess.Popen:
    """A worker, which finds the same modules and has one thread for NumPy's algebra.

    Its session is its own, so that Ctrl-C and a SIGTERM to our group are ours alone from its first moment on; one sent
    to each process, as schedulers do, it ignores once it runs (serve.py). It ends with its standard input.
    """
    modules = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = os.environ | {"PYTHONPATH": modules, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "byol_jax.data.readers.serve"],  # -P: nothing from the folder that we are in
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )


def _end(process: subprocess.Popen) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # bytes that it never took
            if pipe is not None:
                pipe.close()
    process.wait()


def _cause(process: subprocess.Popen, late: float | None) -> str:
    if late is not None:
        return f"its decoder took longer than {late:g} s"
    code = process.returncode
    if code >= 0:
        return f"the process that reads it ended with exit code {code}"
    name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
    return f"its decoder ended its process ({name}): the file is damaged, or the decoder has a fault"


def _workers_of_this_process() -> Callable[[], Workers]:
    """One set for all threads; a process that was forked makes its own, the pipes are its parent's."""
    found: dict[int, Workers] = {}
    lock = threading.Lock()

    def workers() -> Workers:
        with lock:
            if os.getpid() not in found:
                found.clear()
                found[os.getpid()] = Workers()
                atexit.register(found[os.getpid()].close)
            return found[os.getpid()]

    return workers


_workers = _workers_of_this_process()
