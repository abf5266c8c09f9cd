"""One ONNX graph that stops at its exits: written, quantised, run."""
