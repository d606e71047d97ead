"""The schema history of this plugin. Rota applies it with a version table of its own."""
