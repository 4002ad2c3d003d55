"""Pruning that changes shapes: channels and layers go."""
