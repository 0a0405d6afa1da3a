"""Tools of the agent loop, one file a tool."""
