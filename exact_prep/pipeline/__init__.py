"""Order, restart and sums: plan tasks, skip the finished, run the rest, reduce their records, publish.

Emits events (`pipeline.events`) and prints nothing. `pack`, `weigh` and `verify` are the doors.
"""

from exact_prep.pipeline.events import Emit, Event, Finished, Note, Progress, Started, TaskDone
from exact_prep.pipeline.pack import pack
from exact_prep.pipeline.verify import verify
from exact_prep.pipeline.weigh import WeighOptions, weigh

__all__ = [
    "Emit",
    "Event",
    "Finished",
    "Note",
    "Progress",
    "Started",
    "TaskDone",
    "WeighOptions",
    "pack",
    "verify",
    "weigh",
]
