"""`python -m mrad_med` is the `mrad-med` command."""

import sys

from mrad_med.cli import main

sys.exit(main())
