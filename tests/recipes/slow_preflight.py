"""preflight.py with a rank 1 whose every computation takes long: started by torchrun in test_preflight."""

import os
import sys
import time

from course_utils.recipes import preflight

if os.environ["RANK"] == "1":
    fast = preflight.timed

    def timed(work, device):
        started = time.perf_counter()
        fast(work, device)
        time.sleep(0.3)
        return time.perf_counter() - started

    preflight.timed = timed

sys.exit(preflight.main())
