"""`python -m vitprune`."""

from vitprune.cli import main

main()
