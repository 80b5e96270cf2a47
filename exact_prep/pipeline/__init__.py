"""Order, restart and sums: plan tasks, skip the finished, run the rest, reduce their records, publish.

    runs.py      the one protocol of all runs: hold, what is done, run the rest, report, stop
    events.py    what a run tells whoever watches it
    plan.py      the plan of `pack` on disk; tasks.py: its tasks, and which are finished
    continuation.py  goes on with an incomplete run, also where its inputs changed
    pack.py      inputs -> shards -> datasets, through publish.py; array.py: the same as an array of jobs
    validation.py  the last task of a run that holds documents out
    estimate.py  what `pack` will take, from a sample; whether the disk has room for it
    weigh.py     exposure -> weights
    verify.py    a dataset against its own records, with consistency.py
    measure.py   tokens that others wrote -> exposure
    export.py    a dataset as another trainer's files

Emits events and prints nothing. Each module's function of its own name is an entry point (`estimate` is in pack.py).
Import it from there: the package itself imports nothing, so that `weigh` does not wait for what `pack` needs.
"""
