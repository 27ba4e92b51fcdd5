"""`python -m gptmill.cli`."""

from gptmill.cli import main

main()
