"""gRPC: what comes in over the wire and how it is answered."""
