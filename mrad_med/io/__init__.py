"""Any image file or series to an array on its own grid, and back."""
