"""Run the command line: ``python -m craftopt``."""

from craftopt.cli import main

main()
