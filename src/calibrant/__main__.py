"""``python -m calibrant`` is the command line."""

from calibrant.cli.main import main

main()
