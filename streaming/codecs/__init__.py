"""Bytes ↔ table, one batch at a time: exactly one row or one rejection per payload, in order."""
