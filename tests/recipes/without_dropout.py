"""``train_with_accelerate`` with dropout off, for runs on different numbers of processes: masks belong to a rank."""

import functools
import sys

from course_utils.recipes import train_with_accelerate as recipe

recipe.load_classifier = functools.partial(recipe.load_classifier, embedding_dropout=0.0, classifier_dropout=0.0)

if __name__ == "__main__":
    recipe.main(sys.argv[1:])
