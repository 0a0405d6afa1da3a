"""End-to-end tests: a package, so that what they share stops before other folders' tests start."""
