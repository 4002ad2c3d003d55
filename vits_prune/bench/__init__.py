"""How a shipped voice does on the machine that it is to live on. `standalone.py` runs with onnxruntime and numpy and nothing else."""
