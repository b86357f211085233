"""The tables and figures that Dagster knows by name."""
