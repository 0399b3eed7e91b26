"""A Ray cluster and an MLflow server of this machine alone, on loopback: `make cluster`, `make cluster-down`."""
