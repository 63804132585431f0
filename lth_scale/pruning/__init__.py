"""How a mask is found: the exact threshold, masks, patterns, scores, schedules, controls, the ticket.

Knows nothing of data, tracking or launchers.
"""
