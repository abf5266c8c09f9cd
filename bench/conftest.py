"""The memory both sides of every comparison compute in: as jobs with networks have it, or as it comes."""

import os

from ztw.device import keep_freed_memory

if "FREED_MEMORY_GIVEN_BACK" not in os.environ:
    keep_freed_memory()
