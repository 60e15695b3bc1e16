"""Several engines behind one door: who has which model, who is asked, and who next when one fails."""

from velollm.routing.pool import BackendPool
from velollm.routing.turns import Turns

__all__ = ["BackendPool", "Turns"]
