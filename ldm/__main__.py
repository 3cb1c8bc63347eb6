"""`python -m ldm` is `dp-ldm`."""

from ldm.commands.table import main

main()
