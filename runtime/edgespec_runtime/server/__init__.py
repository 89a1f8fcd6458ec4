"""The verifying server: one process behind gRPC that holds a target for many devices."""
