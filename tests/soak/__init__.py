"""Kills real runs at random moments, starts them again, and compares the result with that of an undisturbed run.

    python -m tests.soak --kills 200 --seed 1

Each kill is a SIGKILL: of the parent, of its whole process group, or of one worker. It comes at a random time after the
start, or shortly after a certain file has appeared, so that planning, tasks, publishing and weighing are all hit.
"""
