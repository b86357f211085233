"""When things run: Dagster's definitions, the supervised services and the command line."""
