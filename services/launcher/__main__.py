"""`python -m services.launcher` is the `tideserve` command."""

from services.launcher.main import main

main()
