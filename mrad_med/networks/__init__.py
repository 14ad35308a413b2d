"""Backbone, memory bank, heads, and how images pass through them."""
