"""The fixtures of ``core.testing``, and nothing that a plugin's own tests would not have."""

pytest_plugins = ["core.testing"]
