"""Questions asked of real brokers: declare → run → record → judge → draw. Nothing here knows Dagster."""
