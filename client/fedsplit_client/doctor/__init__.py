"""Is this machine fit to take part? Looks before anything is loaded that could kill the process.

Nothing here imports a native package: each is tried in a process of its own.
"""
