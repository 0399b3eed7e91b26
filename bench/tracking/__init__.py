"""MLflow as a mirror of the records and of the trials that run."""
