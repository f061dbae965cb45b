"""The page of a run, a single file."""

from ditbench.reports.page.page import write_page

__all__ = ["write_page"]
