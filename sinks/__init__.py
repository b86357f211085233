"""Where records come to rest: files whose names carry the position, so that data and position commit as one."""
