"""Export formats, ONNX and Piper writers, the on-device benchmark, model cards, pushing to the hub."""
