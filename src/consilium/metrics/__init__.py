"""How well two contours, or two sets of found nodules, agree: overlap, surfaces, detection, intervals."""
