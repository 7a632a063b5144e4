"""What is raised of a file that gives no image, and how a file is opened that may be none: a pipe never blocks us."""

import os

__all__ = ["UnreadLayoutError", "UnusableImageError", "open_without_waiting"]


class UnusableImageError(Exception):
    """This file gives no image; the text is the reason, one line without the file's name."""


class UnreadLayoutError(UnusableImageError):
    """A TIFF that Pillow would read in part, wrongly or not at all; it may be whole, and another reader may take it."""


def open_without_waiting(path: str, flags: int) -> int:
    """A named pipe would block until somebody writes; a regular file ignores the flag."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
