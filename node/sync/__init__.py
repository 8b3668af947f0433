"""Staying in step with peers: the driver around delta's pure session, the policy, the loop."""
