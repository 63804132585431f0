"""MLflow: what is journaled, sent and shown."""
