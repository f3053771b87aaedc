"""What an id says of a data set, without torch."""

TOY = "toy/"  # the two-dimensional tasks' ids begin so


def is_toy(dataset_id: str) -> bool:
    """Whether an id stands for a two-dimensional task, which is generated."""
    return dataset_id.startswith(TOY)
