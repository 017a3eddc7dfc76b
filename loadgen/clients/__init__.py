"""How a request is sent and its answer checked: over NATS, and over HTTP."""
