"""Kills real runs at random moments, starts them again, and holds what comes out against an undisturbed run.

    python -m tests.soak --kills 200 --seed 1

Each kill is SIGKILL: of the parent, of its whole process group, or of one worker. Moments are times after the start,
or short after something has come to lie on disk, so that planning, tasks, publishing and weighing are all hit.
"""
