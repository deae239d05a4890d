"""Devices that are not here: processes of this machine held to a profile's threads, speed, link and memory.

A wrong plan then fails here as it would on the device. Nothing of it knows what the processes compute.
"""
