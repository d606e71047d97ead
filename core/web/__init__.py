"""The HTTP service. It is a thin layer over the operations, like the command line, and gives the same answers.

Only the command ``rota web`` imports this package, since it needs the packages of the extra ``rota[web]``.
"""
