"""Coverage-guided fuzzing of one target: `python -m tests.fuzz.atheris_readers jsonl -max_total_time=180`.

Needs `pip install atheris` (Linux). Other arguments are passed to libFuzzer; a finding is saved in a file crash-*.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

try:
    import atheris
except ModuleNotFoundError:
    sys.exit("coverage-guided fuzzing needs atheris: pip install atheris")

# Imported before instrumentation, because Numba cannot compile instrumented kernels.
import exact_prep.kernels.best_fit
import exact_prep.kernels.contexts
import exact_prep.kernels.rows

with atheris.instrument_imports(include=["exact_prep"]):
    import exact_prep.pipeline
    import exact_prep.reports
    import exact_prep.sources.jsonl  # noqa: F401
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzz the target that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"name a target: {', '.join(sorted(TARGETS))}")
    target = TARGETS[sys.argv.pop(1)]
    corpus = Path(tempfile.mkdtemp(prefix="exact-prep-corpus-"))
    for number, seed in enumerate(target.seeds()):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup([*sys.argv, str(corpus)], target.feed)
    atheris.Fuzz()


main()
