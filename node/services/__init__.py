"""The gRPC services, written as plain async functions."""
