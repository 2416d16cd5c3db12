"""Hospitals learn together: rounds, checked updates, an order-independent sum, a journal. Knows arrays,
never images.
"""
