"""What Rota tells: logs and metrics."""
