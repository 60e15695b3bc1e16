"""Several engines behind one door: who has which model, and who is asked when one fails."""

from velollm.routing.pool import BackendPool

__all__ = ["BackendPool"]
