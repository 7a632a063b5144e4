"""A pytest plugin for an environment without PyTorch and the extras: what needs them is skipped, the rest runs.

    PYTHONPATH=.ci:. python -m pytest -p without_torch

A test needs PyTorch if it ends with the error that PyTorch, or a package that builds on it, isn't installed, or with
the one by which this library asks for it; a file of tests, if importing it does.
"""

import pytest

PACKAGES = {"byol_pytorch", "kornia", "lightly", "solo", "timm", "torch", "torchvision"}
PACKAGES |= {"array_record", "datasets", "fsspec", "google", "google_crc32c", "grain", "pyarrow", "webdataset"}


def missing(error: BaseException | None) -> str | None:
    """Which of the packages `error`, or one that led to it, says is missing."""
    while error is not None:
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in PACKAGES:
            return error.name
        error = error.__cause__ or error.__context__
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    name = missing(report.call.excinfo.value) if report.failed and report.call.excinfo else None
    if name:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: needs {name}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    name = missing(call.excinfo.value) if report.failed and call.excinfo else None
    if name:
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"Skipped: needs {name}")
    return report
