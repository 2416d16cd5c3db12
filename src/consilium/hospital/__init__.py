"""A hospital's side of a federation: its data, the plan that all agreed on, and what it gave and got.

The only package that knows both `training` and `federation`: neither imports the other, so that the code that
talks to other hospitals cannot reach a case.
"""
