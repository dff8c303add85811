"""`python -m functional_hyper.study`."""

from ._command import main

if __name__ == "__main__":
    main()
