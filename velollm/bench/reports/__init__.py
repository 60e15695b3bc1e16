"""A result for people and programs: as text, in files, as a page with plots."""

from velollm.bench.reports.block import block
from velollm.bench.reports.files import save
from velollm.bench.reports.page import page

__all__ = ["block", "page", "save"]
