"""Exact counts of agreement between label maps, and the statistics that are read from them.

`confusion` counts pixels, `boundary` counts contours; NumPy, numba and SciPy; torch in `device.py` alone.
"""
