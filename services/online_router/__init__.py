"""The online router: admission, routing, the token journal, resume after loss.

`core.py` decides and is pure; `shell.py` acts. Several routers run side by side; each owns one
journal, and any of them takes over the journal of one that died.
"""
