"""A program whose ranks wait for one another for ever: rank 1 is in another branch and never joins the exchange."""

import time

import torch

from course_utils.parallel.links import join_group


def save_the_model():
    """Rank 1 believes that it is the one that saves, and waits for a file that nobody writes."""
    time.sleep(600)


def train_step(link):
    if link.rank == 1:
        save_the_model()
    link.all_reduce(torch.ones(1))


if __name__ == "__main__":
    train_step(join_group())
