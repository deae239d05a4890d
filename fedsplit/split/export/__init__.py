"""From segments of a torch model to ONNX graphs that a device without torch can run."""
