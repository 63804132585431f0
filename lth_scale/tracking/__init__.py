"""The run directory, the console and MLflow. Knows nothing of what a ticket is for."""
