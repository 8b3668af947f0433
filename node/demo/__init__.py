"""The demo: three real nodes on one machine, and the public model that they share."""
