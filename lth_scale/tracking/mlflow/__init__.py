"""Reporting to MLflow: the journal of a run, its delivery, and what MLflow shows."""
