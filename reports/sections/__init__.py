"""A run as reports see it."""

from ditbench.reports.sections.section import Report, Section, read_sections

__all__ = ["Report", "Section", "read_sections"]
