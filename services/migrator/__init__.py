"""The migrator: makes the fleet follow the placement, hand-over by hand-over.

`core.py` decides and is pure; `shell.py` acts. Several migrators run side by side; one owns the
record of an alias, and any of them takes over when the owner falls silent.
"""
