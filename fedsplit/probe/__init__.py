"""What this machine can do, measured: a decoder layer, its memory, a link. Client and server measure alike.

Works without torch, which is imported where it is installed and only when a measurement needs it.
"""
