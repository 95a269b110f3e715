"""Quantization: arrays in, QTensors out. One file per scheme; `qtensor.py` is what all of them produce."""
