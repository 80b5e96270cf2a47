"""`python -m exact_prep`, and the command `exact-prep`.

Worker processes import the script they were started from: what is imported inside `main` costs them nothing (0.2 s).
"""

import os


def main() -> None:
    """Run the command line."""
    # NumPy's OpenBLAS would start a thread per core in every process, for nothing; where a limit forbids it, it sends
    # this process a SIGINT, which looks like Ctrl-C.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        from exact_prep.cli import main as run
    except KeyboardInterrupt:  # before there was anything to stop
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
