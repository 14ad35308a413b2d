"""Folders, tables and public sets to datalists and batches."""
