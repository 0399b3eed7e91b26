"""Text, URL and signal helpers: the standard library alone, as they travel to cluster nodes with `bench.probe`."""
