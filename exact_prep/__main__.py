"""`python -m exact_prep` is `exact-prep`."""

from exact_prep.cli import main

if __name__ == "__main__":
    main()
