"""One file a deep dive: the question, how it is tried, what is claimed and how that is judged."""
