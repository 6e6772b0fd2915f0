"""The learner's gRPC service."""
