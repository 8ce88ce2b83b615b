"""ReStNet Runtime: the best accuracy that a device can afford right now.

The device side: opens a bundle of stitched routes, compiles them once, and moves each request to the best route that
fits the budget. Imports no torch. The workstation side is the package `restnet_export`.
"""

__version__ = "0.1.0"
