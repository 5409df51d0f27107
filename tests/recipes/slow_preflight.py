"""preflight.py with a rank 1 that computes and sends slowly: started in test_preflight."""

import os
import sys
import time

from course_utils.recipes import preflight


def slowed(function):
    def slow(*arguments):
        result = function(*arguments)
        time.sleep(1)
        return result

    return slow


if os.environ["RANK"] == "1":
    preflight.exchange = slowed(preflight.exchange)
    alone = preflight.seconds_of_work
    preflight.seconds_of_work = lambda device: alone(device) + 5

sys.exit(preflight.main())
