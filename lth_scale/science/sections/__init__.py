"""The parts of a report, each a function from a study's results to a `Section`."""
