"""The answer for a case, and every file it becomes."""
