"""A deterministic network of nodes: the real session and swarm under a seeded clock, with faults of every kind."""
