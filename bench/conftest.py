"""Keep freed memory, as jobs with networks do, unless FREED_MEMORY_GIVEN_BACK is set."""

import os

from ztw.device import keep_freed_memory

if "FREED_MEMORY_GIVEN_BACK" not in os.environ:
    keep_freed_memory()
