"""What the service does by itself, again and again: a loop, and one duty per file."""
