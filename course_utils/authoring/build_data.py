"""Build every local data set and tokenizer now, so that no lesson has to wait: ``make data``.

python -m course_utils.authoring.build_data
"""

import sys
import time

from course_utils.data import (
    cache_folder,
    load_classification,
    load_fresh_test,
    load_instructions,
    load_language_modelling,
)
from course_utils.data.regression import parameter_counts
from course_utils.models import load_tokenizer

TEXTS = (load_classification, load_fresh_test, load_instructions, load_language_modelling)


def main() -> int:
    start = time.perf_counter()
    try:
        for load in (*TEXTS, load_tokenizer, parameter_counts):
            load()
    except (OSError, ImportError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"data ready in {cache_folder()} ({time.perf_counter() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
