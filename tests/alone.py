"""Runs Python files in one process, each in an empty folder and with no name but its own.

`python -m tests.alone OUT FILE...` writes a JSON list to OUT: for each file the traceback that it ends with, or "". So
the documents' many short blocks load jax and torch once, and still none can use what another imported or defined.
"""

import json
import os
import runpy
import sys
import tempfile
import traceback
from pathlib import Path


def outcome(file: str) -> str:
    """The traceback that the file ends with, "" where it ends well."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            runpy.run_path(file, run_name="__main__")
        except BaseException:  # SystemExit too: a block that leaves ends only itself
            return traceback.format_exc()
        finally:
            os.chdir("/")
    return ""


if __name__ == "__main__":
    out, *files = sys.argv[1:]
    Path(out).write_text(json.dumps([outcome(file) for file in files]))
