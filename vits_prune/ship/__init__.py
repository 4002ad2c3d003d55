"""Export formats, the on-device benchmark, model cards, and the push to the hub."""
