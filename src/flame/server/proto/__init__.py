"""The Open Inference Protocol over gRPC: its definition and the generated messages."""
