"""Numbers from maps and masks, with bounds and intervals."""
