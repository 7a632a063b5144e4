"""report.html: a page about one run. `write.py` makes it, `page.py` is its HTML, `curves.py` its charts."""

from byol_jax.report.write import write_report

__all__ = ["write_report"]
