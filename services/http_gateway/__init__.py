"""The OpenAI-compatible HTTP API: a plain NATS client, without state and without a model."""
