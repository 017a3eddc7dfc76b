"""Services of TideServe: one folder is one actor, one process, one container."""
