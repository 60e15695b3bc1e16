"""Who goes when: priorities, fair shares, deadlines and slots, in front of any backend."""

from velollm.scheduling.dispatcher import Dispatcher, Grant, Placement, Preempt, Refuse
from velollm.scheduling.job import BATCH, INTERACTIVE, NORMAL, Job
from velollm.scheduling.scheduler import Scheduler

__all__ = [
    "BATCH",
    "INTERACTIVE",
    "NORMAL",
    "Dispatcher",
    "Grant",
    "Job",
    "Placement",
    "Preempt",
    "Refuse",
    "Scheduler",
]
