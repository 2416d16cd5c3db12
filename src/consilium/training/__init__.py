"""From a dataset to a model: the plan, augmentation, the loop, checkpoints, evaluation."""
