"""Quantising a network by its answers: calibration with data, learned rounding, end-to-end tuning.

The arithmetic of codes and scales is in quant; here networks run. Knows no files of models, stores or peers.
"""
