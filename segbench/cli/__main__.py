"""`python -m segbench.cli` is `segbench`."""

from segbench.cli import main

main()
