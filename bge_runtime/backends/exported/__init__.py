"""Graphs for ONNX Runtime and OpenVINO."""
