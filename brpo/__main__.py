"""`python -m brpo`, where the `brpo` command is not on the path."""

from brpo.cli import main

main()
