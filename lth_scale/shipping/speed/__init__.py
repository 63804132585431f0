"""The speed check: is the sparse network faster on this machine than the dense one?"""
