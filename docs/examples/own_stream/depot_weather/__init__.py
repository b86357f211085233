"""The temperature at each depot, and when it begins and ends to freeze: a stream of one's own, in four small files."""
