"""Secure sums among nodes: members train and give masked vectors, a coordinator adds them up and publishes."""
