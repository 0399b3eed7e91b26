"""The storage of a benchmark: files, records, attempts, and the lock that one `run` at a time holds."""
