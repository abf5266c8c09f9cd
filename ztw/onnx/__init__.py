"""Export of a network to one ONNX graph with early exits, its quantisation and its runner."""
