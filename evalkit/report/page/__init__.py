"""The report page: one HTML file with charts, tables, data and provenance inside."""

from evalkit.report.page.render import Studies, render_page

__all__ = ["Studies", "render_page"]
