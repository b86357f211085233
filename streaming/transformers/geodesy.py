"""Distances on the sphere, as polars expressions.

Invariant: scalar arithmetic in one fixed order, so the same two fixes are equally far apart to the last bit wherever
and in whatever batch they are compared.
"""

from __future__ import annotations

from typing import Final

import polars as pl

EARTH_RADIUS_M: Final = 6_371_008.8  # mean radius, IUGG


def haversine_m(latitude: pl.Expr, longitude: pl.Expr, latitude_b: pl.Expr, longitude_b: pl.Expr) -> pl.Expr:
    """Great-circle metres between two points given in degrees; null if any of the four is null."""
    half_north = (latitude_b - latitude).radians() / 2
    half_east = (longitude_b - longitude).radians() / 2
    chord = half_north.sin() ** 2 + latitude.radians().cos() * latitude_b.radians().cos() * half_east.sin() ** 2
    return 2 * EARTH_RADIUS_M * chord.sqrt().clip(upper_bound=1.0).arcsin()
