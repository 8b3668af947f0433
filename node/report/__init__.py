"""Readable reports: one HTML file with inline SVG plots, without scripts or anything to load from elsewhere.

Everything shown is data from somewhere else, names of models and texts included: nothing reaches a page unescaped.
"""
