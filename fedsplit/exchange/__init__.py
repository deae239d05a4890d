"""A client's side of training without saying what computes: steps, measurements, rows and metrics over a ``Part``.

NumPy and the wire only, so that a device with torch and one with exported graphs run the same code.
"""
