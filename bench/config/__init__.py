"""The configuration of a benchmark: its pydantic model, YAML loading, checks and error messages."""
