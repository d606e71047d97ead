"""The schema history of this plugin; Rota runs it with a version table of its own."""
