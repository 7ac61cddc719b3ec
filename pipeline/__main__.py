"""`python -m pipeline`."""

from pipeline.commands.cli import main

if __name__ == "__main__":
    main()
