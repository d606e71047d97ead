"""The HTTP service: thin over the operations, like the command line, and with the same answers.

Only the command ``rota web`` imports it, since it needs the packages of the extra ``rota[web]``.
"""
