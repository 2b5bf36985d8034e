"""Runs the command line as `python -m dreamer4_cli`."""

from dreamer4_cli.app import main


if __name__ == "__main__":
    main()
