"""`python -m toka` is the command `toka`."""

from toka.cli.main import main

main()
