"""``recipes.finetune`` that counts how often its rank read the file of rows: started by test_shared_folder.

``prepare_once.py shared|own FOLDER ...``: whether the ranks have one cache in FOLDER, or one each.
"""

import os
import sys

own = os.environ["RANK"] if sys.argv[1] == "own" else ""
os.environ["HF_HOME"] = os.path.join(sys.argv[2], f"cache{own}")  # before datasets is imported

from course_utils.parallel import report  # noqa: E402
from course_utils.recipes import finetune, json_lines  # noqa: E402

counted = {"read": 0}
rows_of = json_lines.rows_of


def counting(*arguments):
    counted["read"] += 1
    return rows_of(*arguments)


json_lines.rows_of = counting
finetune.main(sys.argv[3:])
report(counted)
