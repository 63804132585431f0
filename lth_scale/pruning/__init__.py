"""The exact threshold, masks, patterns, scores, schedules, controls and the ticket. Knows nothing of data, tracking or launchers."""
