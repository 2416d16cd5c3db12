"""The transport between machines: frames over NVIDIA FLARE's authenticated connections. Needs
`consilium[federation]`.

FLARE carries and authenticates; it runs no jobs and no code from elsewhere. Each side's FLARE process loads
one component of the installed package, named in that side's own configuration.
"""
