"""Export formats, kernels, the speed check, the Hub and model cards. Knows nothing of how a mask was found."""
