"""Ray_backend."""
