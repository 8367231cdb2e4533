"""What the service tells about itself: logs, metrics, traces. Imports nothing of ours."""
