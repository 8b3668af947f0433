"""The version store: crash-safe folders, heads and lineage, locks, pins."""
