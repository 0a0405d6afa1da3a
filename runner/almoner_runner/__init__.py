"""What runs in a runner pod: the meter and the agent loop."""
