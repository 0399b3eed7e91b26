"""The commands of `deelbo-bench`, one module each."""
