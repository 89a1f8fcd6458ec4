"""Weights in few bits: how they are rounded, and the products that ONNX Runtime takes them in."""
