"""Registration of a planning CT with a repeat CT, and the planning contours on the repeat CT."""
