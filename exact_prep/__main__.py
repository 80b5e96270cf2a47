"""`python -m exact_prep`, and the command `exact-prep`.

Worker processes import the script they were started from: what is imported inside `main` costs them nothing (0.2 s).
"""


def main() -> None:
    """Run the command line."""
    try:
        from exact_prep.cli import main as run
    except KeyboardInterrupt:  # before there was anything to stop
        raise SystemExit(130) from None
    run()


if __name__ == "__main__":
    main()
