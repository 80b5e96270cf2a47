"""Order, restart and sums: plan tasks, skip the finished, run the rest, reduce their records, publish.

    runs.py      the one protocol of all runs: hold, what is done, run the rest, report, stop
    events.py    what a run tells whoever watches it
    plan.py      the plan of `pack` on disk; tasks.py: its tasks, and which are finished
    continuation.py  goes on with an incomplete run, also where its inputs changed
    pack.py      inputs -> shards -> datasets, through publish.py
    validation.py  the last task of a run that holds documents out
    estimate.py  what `pack` will take, from a sample; whether the disk has room for it
    weigh.py     exposure -> weights
    verify.py    a dataset against its own records, with consistency.py
    measure.py   tokens that others wrote -> exposure
    export.py    a dataset as another trainer's files

Emits events and prints nothing. `pack`, `estimate`, `measure`, `weigh`, `verify` and `export` are the
entry points.
"""

from exact_prep.pipeline.export import export
from exact_prep.pipeline.measure import measure
from exact_prep.pipeline.pack import estimate, pack
from exact_prep.pipeline.verify import verify
from exact_prep.pipeline.weigh import weigh

__all__ = ["estimate", "export", "measure", "pack", "verify", "weigh"]
