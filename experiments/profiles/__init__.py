"""Profiles: every role of the application under scalene and cProfile, and what their numbers say."""
