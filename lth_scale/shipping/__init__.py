"""Export formats, kernels, the speed check, the Hub and model cards.

Must not know how a mask was found.
"""
