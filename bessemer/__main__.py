"""`python -m bessemer`, the same as `bessemer`."""

import sys

from bessemer.cli import main

sys.exit(main())
