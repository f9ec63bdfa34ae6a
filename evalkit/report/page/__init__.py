"""The report page: one HTML file with charts, tables, data and provenance inside."""

from evalkit.report.page.render import Derived, render_page
from evalkit.report.page.runs import render_runs_page

__all__ = ["Derived", "render_page", "render_runs_page"]
