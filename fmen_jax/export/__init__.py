"""Export of networks to ONNX and StableHLO."""
