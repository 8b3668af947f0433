"""The node's side of Flight's Protocols: thin adapters from calls to stores, models and operations."""
