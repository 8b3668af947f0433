"""Staging: packages on their way in, durable chunk by chunk."""
