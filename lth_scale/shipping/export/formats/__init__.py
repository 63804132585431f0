"""The export formats, one file a family."""
