"""Bad bytes for every reader: each must end in a result or an ExactPrepError, and account for what it was given.

targets.py           what is fed, with seeds, and what must hold
__main__.py          random mutations of the seeds, in a process of its own: `python -m tests.fuzz shard --inputs 500`
atheris_readers.py   coverage-guided: `python -m tests.fuzz.atheris_readers jsonl -max_total_time=180`
"""
