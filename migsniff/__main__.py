"""python -m migsniff"""

import sys

from migsniff.cli import main

sys.exit(main())
