"""The `mrad-med` command."""
