"""The dashboard at /velollm/: a static page, and the figures it shows as JSON."""

from velollm.server.dashboard.page import Dashboard

__all__ = ["Dashboard"]
