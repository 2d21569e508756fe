"""torch modules, and their export to graphs; nothing here runs on a robot with ONNX graphs."""
