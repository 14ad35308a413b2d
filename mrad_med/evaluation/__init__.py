"""A network on a labeled set."""
