"""ONNX graphs of a bundle to TensorRT engines, with TensorRT 10.3 to 11 or TensorRT-RTX."""
