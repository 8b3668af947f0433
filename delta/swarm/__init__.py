"""Passing chunks on: a package is gathered from several peers at once and handed on while it arrives."""
