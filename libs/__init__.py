"""Libraries of TideServe; each layer imports only what stands below it (docs/ARCHITECTURE.md)."""
