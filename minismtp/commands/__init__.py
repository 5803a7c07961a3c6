"""The commands in groups; each imports what it needs, so `serve` forks from a small process."""
