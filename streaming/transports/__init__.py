"""Brokers from the application's side. The transports do not know each other."""
