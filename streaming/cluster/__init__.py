"""Real brokers as processes on this machine: start, stop, kill, pause."""
