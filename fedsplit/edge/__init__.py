"""A client's part of a model without torch: ONNX graphs run by onnxruntime, factors and optimiser in NumPy."""
