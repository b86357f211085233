"""Where events come from: a simulated fleet or a recorded drive, paced open loop, with a ledger."""
