"""A record's life between brokers: made, carried, transformed. Nothing here knows Dagster."""
