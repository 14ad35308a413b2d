"""What MONAI lacks, as `X` / `Xd` pairs."""
