"""Masks: the exact threshold, patterns, scores, schedules, the prunable set, controls, the ticket.

Knows nothing of data, tracking or launchers.
"""
