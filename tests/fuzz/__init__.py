"""Bad bytes for every reader: each input must give a result or an ExactPrepError, and no record may go missing.

targets.py           the readers, with seeds and the properties that must hold
__main__.py          random mutations of the seeds, in a separate process: `python -m tests.fuzz shard --inputs 500`
atheris_readers.py   coverage-guided: `python -m tests.fuzz.atheris_readers jsonl -max_total_time=180`
"""
